"""Inputs of every kind, whole and damaged: read to the end or refused, never in between, never a crash."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import random
import shutil
import tarfile
import zipfile
from array import array
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import datakit
from datakit.errors import CannotJudge, UnreadableInput, UsageError

ROWS = [{"prompt": f"q{n} ", "completion": f" a{n}", "extra": {"n": n, "none": None}} for n in range(300)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PAIRS = [(row["prompt"], row["completion"]) for row in ROWS]


def _parquet(path):
    pq.write_table(pa.table({k: [r[k] for r in ROWS] for k in ("prompt", "completion")}), path, row_group_size=70)


def _arrow(path, stream=False):
    table = pa.table({k: [r[k] for r in ROWS] for k in ("prompt", "completion")})
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=90)


def _csv(path, delimiter):
    lines = [delimiter.join(("prompt", "completion"))] + [f'"{p}"{delimiter}"{c}"' for p, c in PAIRS]
    path.write_text("\n".join(lines) + "\n", "utf-8")


WRITE = {
    "rows.jsonl": lambda p: p.write_bytes(TEXT),
    "crlf.jsonl": lambda p: p.write_bytes(TEXT.replace(b"\n", b"\r\n")),
    "bom.jsonl": lambda p: p.write_bytes(b"\xef\xbb\xbf" + TEXT),
    "blank.jsonl": lambda p: p.write_bytes(b"\n\n" + TEXT.replace(b"\n", b"\n \n").rstrip()),
    "lines.json": lambda p: p.write_bytes(TEXT),
    "array.json": lambda p: p.write_text(json.dumps(ROWS), "utf-8"),
    "pretty.json": lambda p: p.write_text(json.dumps(ROWS, indent=2), "utf-8"),
    "rows.jsonl.gz": lambda p: p.write_bytes(gzip.compress(TEXT)),
    "two.jsonl.gz": lambda p: p.write_bytes(gzip.compress(TEXT[:5000]) + gzip.compress(TEXT[5000:])),
    "rows.jsonl.zst": lambda p: p.write_bytes(zstandard.compress(TEXT)),
    "two.jsonl.zst": lambda p: p.write_bytes(zstandard.compress(TEXT[:999]) + zstandard.compress(TEXT[999:])),
    "rows.jsonl.bz2": lambda p: p.write_bytes(bz2.compress(TEXT)),
    "array.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "rows.csv": lambda p: _csv(p, ","),
    "rows.tsv": lambda p: _csv(p, "\t"),
    "semicolons.csv": lambda p: _csv(p, ";"),
    "tabs.csv": lambda p: _csv(p, "\t"),
    "bars.csv": lambda p: _csv(p, "|"),
    "commas.tsv": lambda p: _csv(p, ","),
    "rows.parquet": _parquet,
    "rows.arrow": _arrow,
    "stream.arrow": lambda p: _arrow(p, stream=True),
    "noname": lambda p: p.write_bytes(TEXT),
}


def _converted(path, out):
    report = datakit.convert(path, out, workers=1, to="sft")
    assert report.exit_code == 0, report.to_json()
    assert report.inputs[0]["bytes"] == path.stat().st_size
    return [(row["prompt"], row["completion"]) for row in datakit.load(out)]


@pytest.mark.parametrize("name", WRITE)
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path):
    WRITE[name](tmp_path / name)
    assert _converted(tmp_path / name, tmp_path / "out") == PAIRS


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in WRITE
        if n.split(".", 1)[-1] in ("jsonl.gz", "jsonl.zst", "jsonl.bz2", "parquet", "arrow", "json", "json.gz")
    ],
)
def test_truncated_files_are_refused(name, tmp_path):
    whole, cut = tmp_path / name, tmp_path / f"cut-{name}"
    WRITE[name](whole)
    data = whole.read_bytes()
    stream = name in ("stream.arrow", "lines.json")  # these may end between two batches, or lines
    for share in (0.1, 0.5, 0.9, 0.999):
        cut.write_bytes(data[: int(len(data) * share)])
        try:
            report = datakit.convert(cut, tmp_path / "out", workers=1, to="sft")
        except CannotJudge as error:
            assert str(cut) in str(error)
        else:
            assert stream
            assert report.exit_code == 1 or name == "stream.arrow"
        if not stream:
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.json", b'[{"text": "a"}, {"te'),
        ("late.json", b"[" + b'{"text": "a"}, ' * 500),
        ("a.jsonl.gz", gzip.compress(TEXT)[:-9]),
        ("a.parquet", b"PAR1 and no more"),
        ("odd.jsonl", b'{"what": 1}\n'),
        ("a.tar", b""),
    ],
)
def test_the_file_that_cannot_be_judged_is_named_beside_the_others(name, data, tmp_path):
    (tmp_path / "good.jsonl").write_bytes(b'{"text": "a"}\n')
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CannotJudge) as caught:
        datakit.validate([tmp_path / "good.jsonl", tmp_path / name], workers=1)
    assert caught.value.path == str(tmp_path / name)
    assert "The other input was not judged; to go on without this one" in caught.value.hint
    with pytest.raises(CannotJudge) as caught:
        datakit.validate(tmp_path / name, workers=1)
    assert caught.value.path == str(tmp_path / name)
    assert "not judged" not in caught.value.hint


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet", "rows.arrow"])
def test_flipped_bits_never_crash_and_never_shorten(name, tmp_path):
    whole, flipped = tmp_path / name, tmp_path / f"flipped-{name}"
    WRITE[name](whole)
    pick = random.Random(3)
    for _ in range(12):
        data = bytearray(whole.read_bytes())
        data[pick.randrange(4, len(data))] ^= 1 << pick.randrange(8)
        flipped.write_bytes(data)
        try:
            report = datakit.validate(flipped, workers=1, to="sft")
        except (CannotJudge, datakit.UsageError):
            continue
        assert report.rows_in == len(ROWS) or report.exit_code == 1


def test_what_stands_between_rows_ends_the_run(tmp_path):
    for name, text, place in (
        ("a.json", '[{"text": "a"}, omitted {"text": "b"}]', "a.json:1: 'omitted "),
        ("late.json", "[" + ",\n".join(['{"text": "a"}'] * 999) + ' ... {"text": "b"}]', "late.json:999: '... "),
        ("page.json", '<html>slow down</html>{"text": "a"}\n', "page.json:1: '<html>slow down</html>"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UnreadableInput) as caught:
            datakit.convert(tmp_path / name, tmp_path / "out", workers=1)
        assert place in caught.value.message
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["a.tar", "a.tar.gz", "a.tgz", "a.TAR.bz2", "a.tar.zst", "a.zip", "a.gz", "a.jsonl.gz", "a.jsonl", "b"]
)
def test_archives_are_to_be_unpacked_first(name, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(TEXT)
    path = tmp_path / name
    if name.endswith(".zip") or name == "b":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "rows.jsonl", "rows.jsonl")
    else:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(tmp_path / "rows.jsonl", "rows.jsonl")
        pack: dict[str, Any] = {
            "gz": gzip.compress,
            "tgz": gzip.compress,
            "bz2": bz2.compress,
            "zst": zstandard.compress,
        }
        path.write_bytes(pack.get(name.rpartition(".")[2], bytes)(packed.getvalue()))
    with pytest.raises(UnreadableInput, match="an archive of files") as caught:
        datakit.validate(path, workers=1)
    assert "Unpack it" in caught.value.hint


def test_trailing_junk_is_refused(tmp_path):
    for name, data in (
        ("a.jsonl.gz", gzip.compress(TEXT)),
        ("a.jsonl.zst", zstandard.compress(TEXT)),
        ("a.jsonl.bz2", bz2.compress(TEXT)),
    ):
        (tmp_path / name).write_bytes(data + b"junk")
        with pytest.raises(CannotJudge, match="near byte|too early"):
            datakit.validate(tmp_path / name, workers=1)
    (tmp_path / "padded.jsonl.gz").write_bytes(gzip.compress(TEXT) + b"\0" * 512)
    assert datakit.validate(tmp_path / "padded.jsonl.gz", workers=1, to="sft").rows_in == len(ROWS)


@pytest.mark.parametrize("pack", [lambda d: gzip.compress(d, 9), zstandard.compress])
def test_a_bomb_is_refused(pack, tmp_path):
    line = b'{"text": "' + b"a" * (60 << 20) + b'"}\n'
    path = tmp_path / ("bomb.jsonl.gz" if pack(b"x")[:2] == b"\x1f\x8b" else "bomb.jsonl.zst")
    path.write_bytes(pack(line) * 8)
    with pytest.raises(CannotJudge, match="over 500 to 1"):
        datakit.validate(path, workers=1)


def test_arrow_with_wrong_offsets_does_not_reach_this_process(tmp_path):
    values = pa.array(["aaaa", "bbbb", "cccc"])
    offsets = pa.py_buffer(array("i", (0, 4, 2**30, 12)))
    data = values.buffers()[2]
    assert data is not None
    bad = pa.StringArray.from_buffers(3, offsets, data)
    path = tmp_path / "bad.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([bad], ["text"]))
    with pytest.raises(CannotJudge):
        datakit.convert(path, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_structs_are_read_without_their_padding(tmp_path):
    messages: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "q", "tool_calls": None}],
        [
            {"role": "user", "content": "q2"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
        ],
    ]
    messages[0].append({"role": "assistant", "content": "a"})
    pq.write_table(pa.table({"messages": messages}), tmp_path / "structs.parquet")
    report = datakit.convert(tmp_path / "structs.parquet", tmp_path / "out", workers=1)
    assert "DK311" in {f.id for f in report.findings}
    rows = list(datakit.load(tmp_path / "out"))
    assert rows[0]["messages"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_hostile_lines_are_rejected_where_they_stand(tmp_path):
    deep = '{"text":' + "[" * 100_000 + "]" * 100_000 + "}"
    hostile = {
        b'{"text": "\xff"}': "DK102",
        rb'{"text": "\ud800"}': "DK102",
        b'{"text": "a\0b"}': "DK101",
        b'{"text": "a", "text": "b"}': "DK108",
        b'{"text": "a", "n": NaN}': "DK109",
        b'{"text": "a", "n": 1e999}': "DK109",
        b'{"text": "a", "n": 123456789012345678901234567890}': "DK113",
        deep.encode(): "DK114",
        b"null": "DK112",
        b'["text"]': "DK112",
        b'{"text": "a"} {"text": "b"}': "DK116",
        b'{"text": "a"': "DK101",
        b'{"text": 7}': "DK104",
        b'{"txt": "a"}': "DK103",
        b"\xef\xbb\xbf" + b'{"text": "bom inside"}': "DK101",
    }
    good = [json.dumps({"text": f"row {n} \u2028 end"}, ensure_ascii=False).encode() for n in range(20_001)]
    lines = [next(iter(hostile))]
    expected: dict[int, str] = {}
    for number, line in enumerate(good):
        lines.append(line)
        if number % 1200 == 0 and len(expected) < len(hostile) - 1:
            line = list(hostile)[len(expected) + 1]
            lines.append(line)
            expected[len(lines)] = hostile[line]
    expected[1] = hostile[lines[0]]
    lines.append(b'{"text": "late", "new": 1}')
    path, out = tmp_path / "hostile.jsonl", tmp_path / "out"
    path.write_bytes(b"\n".join(lines))
    report = datakit.convert(path, out, on_bad_row="quarantine", max_bad="1 %", workers=2, format="text")
    assert report.exit_code == 0, report.verdict
    assert report.rows_in == len(lines) == report.rows_out + report.rows_rejected
    rejects = [
        json.loads(text) for text in (out / "rejects" / "train-00000.jsonl").read_text("utf-8").split("\n") if text
    ]
    assert {reject["line"]: reject["rule"] for reject in rejects} == expected
    data = path.read_bytes()
    for reject in rejects:
        start = reject["byte_offset"]
        assert data[start:].split(b"\n", 1)[0] == lines[reject["line"] - 1]
        if "raw" in reject:
            assert reject["raw"].encode() == lines[reject["line"] - 1]
    rows = list(datakit.load(out).rows(all=True))
    assert [row["text"] for row in rows[:-1]] == [json.loads(line)["text"] for line in good]
    assert rows[-1]["dk_meta"] == {"new": 1}


def test_a_line_too_long_is_passed_over(tmp_path):
    path, out = tmp_path / "long.jsonl", tmp_path / "out"
    with path.open("wb") as file:
        file.write(b'{"text": "one"}\n{"text": "')
        for _ in range(70):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "three"}\n')
    report = datakit.convert(path, out, on_bad_row="quarantine", max_bad="1 rows", workers=1)
    assert report.rejected == {"DK115": 1}
    assert [row["text"] for row in datakit.load(out)] == ["one", "three"]
    reject = json.loads((out / "rejects" / "train-00000.jsonl").read_text("utf-8"))
    assert (reject["line"], reject["byte_offset"]) == (2, 16)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("cr.jsonl", TEXT.replace(b"\n", b"\r"), "carriage returns"),
        ("wide.jsonl", TEXT.decode().encode("utf-16"), "UTF-16"),
        ("quote.csv", b'prompt,completion\na,"b\n', "quote"),
        ("twice.csv", b"prompt,prompt\na,b\n", "twice"),
        ("what.bin", b"\x00\x01\x02", "neither"),
        ("fake.parquet", TEXT, "not a parquet file"),
        ("fake.jsonl.gz", TEXT, "first bytes"),
        ("junk.json", b'[{"prompt": "a", "completion": "b"}] x', "after the end"),
    ],
)
def test_what_cannot_be_read_is_told(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CannotJudge, match=said):
        datakit.convert(tmp_path / name, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "rows", "line"),
    [
        ("last.csv", 'a,b\nc,"d\n', 3),
        ("early.csv", 'a,b\n"c,d\ne,f\ng,h\n', 3),
        ("closed.csv", '"1\n2","3\n4"\n"5\n6","7\n8\n', 6),
        ("doubled.csv", '"say ""a""\n""b""","c ""d\n""\ne,f\n', 3),
        ("inside.csv", '5" wide,"b\nc,d\n', 2),
        ("next.csv", 'a,"b\nc,d\n"e",f\n', 2),
        ("crlf.csv", '"a\r\nb","c"\r\nd,"e\r\n', 4),
        ("tab.tsv", 'a\t"b\nc\td\n', 2),
        ("header.csv", "", 1),
    ],
)
def test_the_quote_that_is_never_closed_is_named(name, rows, line, tmp_path):
    sign = "\t" if name.endswith(".tsv") else ","
    header = '"instruction,output\n' if not rows else f"instruction{sign}output\n"
    (tmp_path / name).write_text(header + rows, newline="")
    with pytest.raises(UnreadableInput, match="a quote opens here") as caught:
        datakit.validate(tmp_path / name, workers=1, format="alpaca")
    assert f"{name}:{line}: " in caught.value.message


def test_csv_cells(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_bytes(
        'system,instruction,input,output\n,"say ""hi""\nnow",,"ü"\n,a,b\nx,\xff,b,c\n'.encode("latin-1").replace(
            b"\xfc", "ü".encode()
        )
    )
    report = datakit.convert(path, tmp_path / "out", on_bad_row="quarantine", max_bad="9 rows", workers=1)
    assert report.rejected == {"DK102": 1, "DK104": 1}
    assert next(iter(datakit.load(tmp_path / "out")))["messages"] == [
        {"role": "user", "content": 'say "hi"\nnow'},
        {"role": "assistant", "content": "ü"},
    ]


def test_rejects_of_a_csv_hold_its_text_and_are_repaired_as_objects(tmp_path):
    lines = [b"instruction;output", b'"a;\xff ""b""";c', b'"d\r\n\xfe";e', b"f;g;h", b"i;j"]
    (tmp_path / "odd.csv").write_bytes(b"\r\n".join(lines) + b"\r\n")
    out, more = tmp_path / "out", tmp_path / "more"
    datakit.convert(tmp_path / "odd.csv", out, on_bad_row="quarantine", max_bad="3 rows", workers=1)
    [path] = (out / "rejects").iterdir()
    rejects = [json.loads(line) for line in path.read_text().splitlines()]
    assert [base64.b64decode(reject.pop("raw_base64")) for reject in rejects[:2]] == lines[1:3]
    assert json.loads(rejects[2]["raw"]) == ["f", "g", "h"]
    for reject, output in zip(rejects, ("c", "e", "g;h"), strict=True):
        reject["raw"] = json.dumps({"instruction": "q", "output": output})
    shutil.copytree(out / "rejects", tmp_path / "copy")
    (tmp_path / "copy" / path.name).write_text("".join(json.dumps(reject) + "\n" for reject in rejects))
    assert datakit.convert((), more, from_rejects=str(tmp_path / "copy"), workers=1).rows_out == 3
    assert [row["messages"][1]["content"] for row in datakit.load(more)] == ["c", "e", "g;h"]


def test_blank_lines_of_a_csv_are_counted(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("instruction,output\na,b\n\nc,\n\n", "utf-8")
    report = datakit.convert(path, tmp_path / "out", on_bad_row="quarantine", max_bad="1 row", workers=1)
    ledger = report.to_json()["ledger"]
    assert (ledger["rows_in"], ledger["blank_lines"], report.rows_out) == (2, 2, 1)
    assert json.loads(next((tmp_path / "out" / "rejects").iterdir()).read_text())["row"] == 3


def test_the_output_does_not_depend_on_workers_or_surroundings(tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_bytes(TEXT * 40)
    monkeypatch.chdir(tmp_path)
    found = set()
    for workers, zone in ((1, "UTC"), (2, "Asia/Kathmandu"), (3, "America/St_Johns")):
        monkeypatch.setenv("TZ", zone)
        report = datakit.convert("in.jsonl", f"out{workers}", workers=workers, shard_size="300kB", to="sft")
        found.add((report.content_id, tuple(s["sha256"] for s in report.shards)))
        assert len(report.shards) > 2
    assert len(found) == 1


def test_bit_flips_in_shards_are_found(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(TEXT)
    out = tmp_path / "out"
    datakit.convert(tmp_path / "in.jsonl", out, shard_size="9kB", workers=1, to="sft")
    pick = random.Random(5)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "README.md")
    assert len(files) > 2
    for _ in range(60):
        path = pick.choice(files)
        data = path.read_bytes()
        at = pick.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << pick.randrange(8))]) + data[at + 1 :])
        try:
            assert datakit.verify(out).exit_code == 1
        except CannotJudge:
            assert path.name == "manifest.json"
        with pytest.raises(CannotJudge):
            datakit.load(out)
        path.write_bytes(data)
    assert datakit.verify(out).exit_code == 0
    (out / "data" / "train-00099-of-00100.parquet").write_bytes(b"x")
    assert datakit.verify(out).exit_code == 1


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[\n  {"text": "a"}\n]\n',
        '{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n',
    ],
)
def test_a_document_under_the_name_of_lines_is_to_be_renamed(text, tmp_path):
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    with pytest.raises(UnreadableInput) as caught:
        datakit.validate(tmp_path / "a.jsonl", workers=1)
    assert caught.value.hint == "Rename it to a.json: this is one JSON document."
    (tmp_path / "a.jsonl").rename(tmp_path / "a.json")
    assert datakit.validate(tmp_path / "a.json", workers=1).rows_out == text.count("text")


def test_a_list_among_lines_is_a_bad_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('["a"]\n{"text": "b"}\n', "utf-8")
    assert datakit.validate(tmp_path / "a.jsonl", workers=1).rejected == {"DK112": 1}


def test_what_a_folder_holds_besides_is_told(tmp_path):
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("part-00000", "more/b.xz", "README.md", "LICENSE", ".hidden", "c.bak"):
        (folder / name).write_text("x")
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    report = datakit.validate(folder, workers=1)
    [left] = [summary for summary in report.findings if summary.id == "DK127"]
    assert (left.severity, left.share, report.exit_code) == ("note", 0, 0)
    names = ", ".join(f"{folder}/{name}" for name in ("c.bak", "linked", "more/b.xz"))
    assert left.first[0]["note"] == f"4 names in folders: {names} and 1 more"
    assert not datakit.validate(f"{folder}/*.jsonl", workers=1).findings


@pytest.mark.parametrize("call", [datakit.load, datakit.validate, datakit.stream])
def test_what_is_neither_a_name_nor_rows_is_refused(call):
    with pytest.raises(UsageError, match="of type int"):
        call(5)
