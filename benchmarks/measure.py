"""What the benchmarks share: generated conversations, whole commands timed and weighed, and the machine."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import psutil

WORDS = (
    "the model data train row token batch shard reads writes learns answers asks question because while about after "
    "before under over through between against without within upon every each many few several small large quick slow "
    "simple exact whole part first last next early late often never always almost perhaps certainly number letter word "
    "sentence page book chapter story reason result cause effect method rule case test proof claim idea thought plan"
).split()


def conversation(pick: random.Random) -> list[dict[str, str]]:
    """ShareGPT turns of about 2 KB together."""
    turns = pick.choice((2, 4, 4, 6, 8))
    made = []
    for turn in range(turns):
        words = pick.choices(WORDS, k=max(4, int(2000 / turns / 6.3 * pick.uniform(0.4, 1.6))))
        text = " ".join(words).capitalize() + pick.choice((".", "?", ".\n\n- one: yes\n- two: no", ' ("so").'))
        made.append({"from": "human" if turn % 2 == 0 else "gpt", "value": text})
    return made


class Memory(threading.Thread):
    """Samples the anonymous memory of a process and its children, summed."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(pid)
        self.peak = 0
        self.running = True

    def run(self) -> None:
        while self.running:
            total = 0
            try:
                for process in (self.root, *self.root.children(recursive=True)):
                    total += anonymous(process.pid)
            except psutil.Error:
                return
            self.peak = max(self.peak, total)
            time.sleep(0.02)


def anonymous(pid: int) -> int:
    """Bytes of private anonymous memory, from /proc; the unique set size elsewhere."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    except FileNotFoundError:
        if Path("/proc").exists():
            return 0
        return int(psutil.Process(pid).memory_full_info().uss)
    except (OSError, StopIteration):
        return 0


def run(command: list[str], watch: bool) -> tuple[float, int]:
    """Wall seconds of a command, and its peak memory if watched."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        memory = Memory(process.pid)
        if watch:
            memory.start()
        _, errors = process.communicate()
        seconds = time.perf_counter() - start
        memory.running = False
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{errors.decode()[-2000:]}")
    return seconds, memory.peak


def machine(*packages: str) -> dict[str, str | int | None]:
    """The machine and the versions of packages, for a result."""
    versions = {package: version(package) for package in packages}
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system(), **versions}
