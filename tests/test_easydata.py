"""Sharded sources: one law for all of them, and what EasyData's own do wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem

import datakit
from datakit import easydata
from datakit.errors import UnreadableInput, UsageError

ROWS: list[dict[str, Any]] = [{"n": n, "text": f"row {n}"} for n in range(10)]


def dumped(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 4) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def arrow(path: Path, rows: list[dict[str, Any]], stream: bool = False) -> Path:
    table = pa.Table.from_pylist(rows)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: str(value) for name, value in row.items()} for row in rows]


def double(row: dict[str, Any]) -> Any:
    return [row, {**row, "text": "again"}] if row["n"] % 3 else None


@pytest.fixture
def sources(tmp_path):
    """Sources of all classes with the rows that each has to give."""
    blank = dumped(ROWS[:3]) + "\n  \n\r\n" + dumped(ROWS[3:])
    plain = easydata.JsonShardedSource(written(tmp_path / "plain.jsonl", blank))
    csv = "n,text\n" + "".join(f"{row['n']},{row['text']}\n" for row in ROWS)
    expanded = [made for row in ROWS for made in double(row) or []]
    hf = pytest.importorskip("datasets").Dataset.from_list(ROWS)
    return {
        "parquet": (easydata.ParquetShardedSource(parquet(tmp_path / "a.parquet", ROWS)), ROWS),
        "arrow": (easydata.ArrowShardedSource(arrow(tmp_path / "a.arrow", ROWS)), ROWS),
        "stream": (easydata.ArrowShardedSource(arrow(tmp_path / "b.arrow", ROWS, stream=True)), ROWS),
        "blank lines": (plain, ROWS),
        "array": (easydata.JsonShardedSource(written(tmp_path / "a.json", json.dumps(ROWS, indent=1))), ROWS),
        "lines in .json": (easydata.JsonShardedSource(written(tmp_path / "b.json", dumped(ROWS))), ROWS),
        "gz": (easydata.JsonShardedSource(written(tmp_path / "a.jsonl.gz", gzip.compress(blank.encode()))), ROWS),
        "zst": (easydata.JsonShardedSource(written(tmp_path / "a.json.zst", zstandard.compress(json.dumps(ROWS).encode()))), ROWS),
        "csv": (easydata.CsvShardedSource(written(tmp_path / "a.csv", csv)), texts(ROWS)),
        "txt": (easydata.TextShardedSource(written(tmp_path / "a.txt", "a\n\nb\r\nc"), text_field="t"), [{"t": x} for x in "abc"]),
        "map": (plain.map(lambda row: {**row, "m": 1}), [{**row, "m": 1} for row in ROWS]),
        "filter": (plain.filter(lambda row: row["n"] % 2 == 1), ROWS[1::2]),
        "transform": (plain.transform(double), expanded),
        "chain": (plain.transform(double).filter(lambda r: r["n"] > 3).transform(double), [m for r in expanded if r["n"] > 3 for m in double(r) or []]),
        "limited": (easydata.LimitedShardedSource(plain, 4), ROWS[:4]),
        "dataset": (easydata.HFDatasetShardedSource(hf), ROWS),
        "iterable": (easydata.HFDatasetShardedSource(hf.to_iterable_dataset()), ROWS),
        "composite": (easydata.CompositeShardedSource([plain, plain.filter(lambda row: row["n"] > 7)]), ROWS + ROWS[8:]),
    }  # fmt: skip


def test_every_row_and_every_place_to_begin(sources):
    """Opening at row n, for each n up to one past the end, gives what is left of the shard; so does `iter_shards`."""
    for what, (source, rows) in sources.items():
        assert list(source) == rows, what
        assert source.num_shards() == len(set(source.shard_names)), what
        assert [row for name in source.shard_names for row in source.open_shard(name)] == rows, what
        name = source.shard_names[0]
        first = list(source.open_shard(name))
        for start in range(len(first) + 2):
            assert list(source.open_shard_at_row(name, start)) == first[start:], (what, start)
            rest = rows[start:] if start <= len(first) else rows[len(first) :]
            assert list(source.iter_shards(start_row=start)) == rest, (what, start)
        assert source.get_shard_info(name).shard_name == name
        with pytest.raises(UsageError, match="no shard named"):
            list(source.open_shard("nothing"))
        with pytest.raises(UsageError, match="counted from 0"):
            list(source.open_shard_at_row(name, -1))


def test_lengths_are_right_or_refused(sources):
    for what, (source, rows) in sources.items():
        if what in ("filter", "transform", "chain", "iterable", "composite"):
            with pytest.raises(TypeError):
                len(source)
        else:
            assert len(source) == len(rows), what


def test_the_end_of_a_file_with_several_row_groups_is_the_end(tmp_path):
    source = easydata.ParquetShardedSource(parquet(tmp_path / "a.parquet", ROWS, group=4))
    assert list(source.open_shard_at_row(source.shard_names[0], 10)) == []
    assert source.get_shard_info(source.shard_names[0]).num_rows == 10


def test_columns_json_and_fields(tmp_path):
    source = easydata.ParquetShardedSource(parquet(tmp_path / "a.parquet", ROWS), columns=["text"])
    assert next(iter(source)) == {"text": "row 0"}
    whole = easydata.ParquetShardedSource(tmp_path / "a.parquet")
    assert next(iter(whole.rename_fields({"n": "number"}))) == {"number": 0, "text": "row 0"}
    assert next(iter(whole.select_fields(["text", "none"]))) == {"text": "row 0"}
    assert next(iter(whole.drop_fields(["text"]))) == {"n": 0}
    with pytest.raises(UsageError, match="one name"):
        next(iter(whole.rename_fields({"n": "text"})))


def test_shards_of_datakit_are_a_source(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "in.jsonl").write_text(dumped([{"messages": chat}]))
    datakit.convert(tmp_path / "in.jsonl", tmp_path / "s", workers=1)
    source = easydata.ParquetShardedSource(str(tmp_path / "s" / "data" / "*.parquet"))
    assert next(iter(source))["messages"] == chat
    report = datakit.convert(easydata.JsonShardedSource(tmp_path / "in.jsonl"), tmp_path / "t", workers=1)
    assert (report.rows_in, report.rows_out) == (1, 1)


def test_subsets_of_shards(tmp_path):
    for n in range(4):
        written(tmp_path / f"{n}.jsonl", dumped([{"n": 10 * n + k} for k in range(3)]))
    source = easydata.JsonShardedSource(tmp_path / "*.jsonl")
    assert [row["n"] for row in source.iter_shards([3, 1])] == [30, 31, 32, 10, 11, 12]
    assert [row["n"] for row in source.iter_shards([3, 1, 0], start_shard=1, start_row=2)] == [12, 0, 1, 2]
    halves = [list(source.iter_shards(range(rank, 4, 2))) for rank in (0, 1)]
    assert sorted(row["n"] for half in halves for row in half) == sorted(row["n"] for row in source)
    limited = easydata.LimitedShardedSource(source, 5)
    assert [row["n"] for row in limited] == [0, 1, 2, 10, 11]
    assert [limited.get_shard_info(name).num_rows for name in limited.shard_names] == [3, 2, 0, 0]


def test_equal_names_reach_different_shards(tmp_path):
    one, two = (
        easydata.HFDatasetShardedSource(pytest.importorskip("datasets").Dataset.from_list([{"n": n}]), name="same")
        for n in (1, 2)
    )
    both = easydata.CompositeShardedSource([one, two])
    assert len(set(both.shard_names)) == 2
    assert [list(both.open_shard(name)) for name in both.shard_names] == [[{"n": 1}], [{"n": 2}]]
    assert len(both) == 2


def test_a_folder_with_several_kinds_loses_none(tmp_path):
    (tmp_path / "d" / "deep").mkdir(parents=True)
    written(tmp_path / "d" / "a.jsonl", dumped(ROWS[:2]))
    parquet(tmp_path / "d" / "b.parquet", ROWS[2:5])
    written(tmp_path / "d" / "deep" / "c.jsonl", dumped(ROWS[5:]))
    written(tmp_path / "d" / ".hidden.jsonl", "x")
    assert list(easydata.create_source(tmp_path / "d")) == ROWS
    with pytest.raises(UsageError, match=r"a\.jsonl is no parquet file"):
        easydata.ParquetShardedSource(tmp_path / "d")
    assert list(easydata.ParquetShardedSource(tmp_path / "d" / "*.parquet")) == ROWS[2:5]


def test_create_source(tmp_path):
    odd = written(tmp_path / "rows.data", dumped(ROWS))
    assert list(easydata.create_source(odd, type="jsonl")) == ROWS
    with pytest.raises(UsageError, match="does not say what it is"):
        easydata.create_source(odd)
    with pytest.raises(UsageError, match="type 'xml'"):
        easydata.create_source(odd, type="xml")
    with pytest.raises(UnreadableInput, match="no file matches"):
        easydata.create_source(tmp_path / "none*.jsonl")
    assert easydata.create_source("hf:owner/name").shard_names == ["owner/name:train"]


def test_files_are_sorted_and_each_is_there_once(tmp_path):
    for name in "ba":
        written(tmp_path / f"{name}.jsonl", dumped(ROWS))
    found = easydata.expand_data_files([tmp_path / "b.jsonl", str(tmp_path / "*.jsonl"), tmp_path])
    assert found == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def test_a_malformed_line_has_a_place_or_is_passed_over_and_listed(tmp_path):
    path = written(tmp_path / "a.jsonl", dumped(ROWS[:2]) + '\n{"n": \n[1]\n' + dumped(ROWS[2:]))
    with pytest.raises(UnreadableInput, match=r"a\.jsonl:4"):
        list(easydata.JsonShardedSource(path))
    source = easydata.JsonShardedSource(path, on_bad_line="skip")
    assert list(source) == list(source) == ROWS
    assert list(source.open_shard_at_row(source.shard_names[0], 3)) == ROWS[3:]
    assert [(Path(file).name, line) for file, line, _ in source.bad_lines] == [("a.jsonl", 4), ("a.jsonl", 5)]


def test_truncated_and_damaged_files_are_refused(tmp_path):
    packed = gzip.compress(dumped(ROWS).encode())
    with pytest.raises(UnreadableInput, match="ends too early"):
        list(easydata.JsonShardedSource(written(tmp_path / "a.jsonl.gz", packed[:-9])))
    with pytest.raises(UnreadableInput, match="no UTF-8"):
        list(easydata.TextShardedSource(written(tmp_path / "a.txt", b"a\n\xff\n")))
    with pytest.raises(UnreadableInput, match="row 2"):
        list(easydata.CsvShardedSource(written(tmp_path / "a.csv", "a,b\n1,2\n3\n")))


class Guarded(MemoryFileSystem):
    """A file system that needs a token, to list as well as to open."""

    protocol = "guarded"
    cachable = False

    def __init__(self, token: str = "", **options: Any) -> None:
        if token != "secret":
            raise PermissionError("a token is needed")
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("guarded:/"))


def test_storage_options_list_and_open(tmp_path):
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    store = fsspec.filesystem("guarded", token="secret")
    with store.open("/bucket/a.jsonl", "wb") as handle:
        handle.write(dumped(ROWS[:4]).encode())
    with store.open("/bucket/b.parquet", "wb") as handle:
        pq.write_table(pa.Table.from_pylist(ROWS[4:]), handle)
    options = {"token": "secret"}
    assert list(easydata.JsonShardedSource("guarded://bucket/*.jsonl", storage_options=options)) == ROWS[:4]
    whole = easydata.create_source("guarded://bucket", storage_options=options)
    assert list(whole) == ROWS
    assert all(name.startswith("guarded://") for name in whole.shard_names)
    assert whole.get_shard_info(whole.shard_names[0]).byte_size == len(dumped(ROWS[:4]))
    with pytest.raises(PermissionError):
        easydata.JsonShardedSource("guarded://bucket/*.jsonl")
    store.rm("/bucket", recursive=True)


def test_a_dataset_by_its_name(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "d").mkdir()
    written(tmp_path / "d" / "train.jsonl", dumped(ROWS))
    source = easydata.HuggingFaceShardedSource(str(tmp_path / "d"), streaming=False, cache_dir=str(tmp_path / "c"))
    assert source.shard_names == [f"{tmp_path / 'd'}:train"]
    assert list(source) == ROWS
    assert len(source) == 10
