"""Whole or absent: after a kill at any operation or any moment the output is the old one, the new one, or not there."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import datakit
from datakit.output import disk

KILLS = int(os.environ.get("DATAKIT_KILLS", "20"))

# Converts IN to OUT; at the operation number K it does what ACTION says. Prints how many operations there were.
DRIVER = """
import os, signal, sys
import datakit
from datakit.output import disk
action, k, source, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
count = 0
def hook(name, path):
    global count
    count += 1
    if action == "log":
        print(name, os.path.basename(path), file=sys.stderr)
    if count == k and action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
disk.hook = hook
datakit.convert(source, out, overwrite=True, workers=1, shard_size=2000)
print(count)
"""


def _rows(path: Path, word: str, count: int) -> str:
    path.write_text("".join(json.dumps({"text": f"{word} {n} " + "x" * 80}) + "\n" for n in range(count)), "utf-8")
    return str(path)


def _drive(action, k, source, out):
    return subprocess.run(
        [sys.executable, "-c", DRIVER, action, str(k), source, str(out)], capture_output=True, text=True, check=False
    )


def _content(out: Path) -> list[str] | None:
    """The rows of a complete output, or None where there is none. Anything in between fails here."""
    if not out.exists():
        return None
    assert datakit.verify(out).exit_code == 0
    return [row["text"] for row in datakit.load(out)]


def _texts(source: str) -> list[str]:
    return [json.loads(line)["text"] for line in Path(source).read_text("utf-8").splitlines()]


def _beside(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.name.endswith(".datakit")]


@pytest.mark.parametrize("there_before", [False, True])
def test_killed_at_every_operation(there_before, tmp_path):
    old, new = _rows(tmp_path / "old.jsonl", "old", 5), _rows(tmp_path / "new.jsonl", "new", 35)
    (tmp_path / "o").mkdir()
    out = tmp_path / "o" / "shards"
    undisturbed = datakit.convert(new, tmp_path / "o" / "plain", workers=1, shard_size=2000)
    datakit.convert(old, tmp_path / "old", workers=1, shard_size=2000)
    states = set()
    for k in range(1, 1000):
        shutil.rmtree(out, ignore_errors=True)
        if there_before:
            shutil.copytree(tmp_path / "old", out)
        done = _drive("kill", k, new, out)
        found = _content(out)
        assert found in (_texts(old) if there_before else None, _texts(new)), k
        states.add((done.returncode == 0, found == _texts(new)))
        again = datakit.convert(new, out, overwrite=True, workers=1, shard_size=2000)
        assert again.content_id is not None
        assert _content(out) == _texts(new)
        assert again.rows_out == undisturbed.rows_out
        assert _beside(out) == []
        if done.returncode == 0:
            break
    assert k > 20
    # killed before the exchange, killed after it, and not killed
    assert states == {(False, False), (False, True), (True, True)}


def test_killed_at_random_moments(tmp_path):
    old, new = _rows(tmp_path / "old.jsonl", "old", 3000), _rows(tmp_path / "new.jsonl", "new", 6000)
    (tmp_path / "o").mkdir()
    out = tmp_path / "o" / "shards"
    words = [sys.executable, "-m", "datakit", "convert", "-o", str(out), "--overwrite", "--workers", "2"]
    words += ["--shard-size", "60kB"]
    started = time.monotonic()
    subprocess.run([*words, new], check=True, capture_output=True)
    whole = time.monotonic() - started
    expected = datakit.verify(out).content_id
    pick = random.Random(20)
    for _ in range(KILLS):
        subprocess.run([*words, old], check=True, capture_output=True)
        process = subprocess.Popen([*words, new], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(pick.uniform(0.05, 1.05 * whole))
        process.kill()
        process.wait()
        assert _content(out) in (_texts(old), _texts(new))
        subprocess.run([*words, new], check=True, capture_output=True)
        assert _content(out) == _texts(new)
        assert datakit.verify(out).content_id == expected
        assert _beside(out) == []


def test_finished_shards_are_not_done_again(tmp_path):
    source = _rows(tmp_path / "in.jsonl", "row", 120)
    log = [line.split() for line in _drive("log", 0, source, tmp_path / "a").stderr.splitlines()]
    opened = [line for line in log if line[0] == "open" and line[-1].endswith(".parquet")]
    assert len(opened) > 4
    third = next(i for i, line in enumerate(log, start=1) if line == opened[3])
    assert _drive("kill", third, source, tmp_path / "b").returncode == -signal.SIGKILL
    rest = [line.split() for line in _drive("log", 0, source, tmp_path / "b").stderr.splitlines()]
    again = [line for line in rest if line[0] == "open" and line[-1].endswith(".parquet")]
    assert again == opened[3:]
    assert _content(tmp_path / "b") == _texts(source)


def test_changed_input_starts_afresh(tmp_path):
    source = _rows(tmp_path / "in.jsonl", "row", 120)
    assert _drive("kill", 40, source, tmp_path / "out").returncode == -signal.SIGKILL
    assert _beside(tmp_path / "out")
    _rows(tmp_path / "in.jsonl", "other", 120)
    assert _drive("count", 0, source, tmp_path / "out").returncode == 0
    assert _content(tmp_path / "out") == _texts(source)


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_every_operation_may_fail(code, tmp_path, monkeypatch):
    import errno

    old, new = _rows(tmp_path / "old.jsonl", "old", 5), _rows(tmp_path / "new.jsonl", "new", 25)
    (tmp_path / "o").mkdir()
    out = tmp_path / "o" / "shards"
    datakit.convert(old, tmp_path / "old", workers=1, shard_size=2000)
    number = getattr(errno, code)
    k = 0
    while True:
        k += 1
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)
        count = 0

        def hook(name, path, k=k):
            nonlocal count
            count += 1
            if count == k:
                raise OSError(number, os.strerror(number), path)

        monkeypatch.setattr(disk, "hook", hook)
        said = ""
        try:
            datakit.convert(new, out, overwrite=True, workers=1, shard_size=2000)
        except datakit.NotWritten as error:
            said = str(error)
        finally:
            monkeypatch.setattr(disk, "hook", None)
        assert (os.strerror(number) in said) == (count >= k)
        assert _content(out) in (_texts(old), _texts(new)), k
        if count < k:
            break
        datakit.convert(new, out, overwrite=True, workers=1, shard_size=2000)
        assert _content(out) == _texts(new)
        assert _beside(out) == []
    assert k > 20


def test_a_full_disk_is_exit_4(tmp_path):
    source = _rows(tmp_path / "in.jsonl", "row", 20_000)
    limit = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from datakit.cli import main; main()"
    )
    words = [sys.executable, "-c", limit, "convert", source, "-o", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "GiB free" in done.stderr
    assert not (tmp_path / "out").exists()
    assert datakit.convert(source, tmp_path / "out").exit_code == 0
    assert _beside(tmp_path / "out") == []


def test_one_writer_at_a_time(tmp_path):
    source = _rows(tmp_path / "in.jsonl", "row", 50)
    holder = (
        "import sys, time; from pathlib import Path; from datakit.output.transaction import Transaction\n"
        "with Transaction(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", holder, str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        done = subprocess.run(
            [sys.executable, "-m", "datakit", "convert", source, "-o", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.returncode == 75
        assert f"process {process.pid}" in done.stderr
        process.kill()
    assert datakit.convert(source, tmp_path / "out").exit_code == 0  # the lock of a dead process holds nobody up


def test_what_is_there_is_respected(tmp_path):
    source = _rows(tmp_path / "in.jsonl", "row", 5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for out in ("mine", "in.jsonl", "."):
        with pytest.raises(datakit.UsageError):
            datakit.convert(source, tmp_path / out, overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    out = tmp_path / "out"
    datakit.convert(source, out)
    facts = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "already complete" in datakit.convert(source, out).verdict
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == facts
    with pytest.raises(datakit.UsageError, match="--overwrite"):
        datakit.convert(source, out, shard_size=1000)
    _rows(tmp_path / "in.jsonl", "changed", 5)
    with pytest.raises(datakit.UsageError, match="changed"):
        datakit.convert(source, out)
    datakit.convert(source, out, overwrite=True)
    assert _content(out) == _texts(source)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_run_cleanly(number, code, tmp_path):
    source = _rows(tmp_path / "in.jsonl", "row", 300_000)
    words = [sys.executable, "-m", "datakit", "convert", source, "-o", str(tmp_path / "out"), "--shard-size", "1MB"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / ".out.datakit" / "journal.jsonl").exists():
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    assert process.returncode == code
    assert "run the same command again" in said
    assert not (tmp_path / "out").exists()
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert len(datakit.load(tmp_path / "out")) == 300_000
