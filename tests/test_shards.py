"""Row groups that were encoded apart make the file that one writer would have made."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit import worker
from datakit.errors import InternalError
from datakit.output import footer
from datakit.output.rowgroup import MAGIC, encode
from datakit.output.shards import ShardWriter
from datakit.step import Result
from datakit.tally import Tally

SCHEMA = pa.schema(
    [
        pa.field("messages", pa.json_(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("margin", pa.float64()),
        pa.field("label", pa.bool_()),
        pa.field("dk_id", pa.string(), nullable=False),
        pa.field("dk_source", pa.string(), nullable=False),
        pa.field("dk_row", pa.int64(), nullable=False),
    ],
    {"about": "rows"},
)
ROWS = st.lists(
    st.tuples(
        st.text(max_size=5).map(lambda text: f'["{len(text)}"]'),
        st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        st.one_of(st.none(), st.floats(allow_nan=False)),
        st.one_of(st.none(), st.booleans()),
        st.text(max_size=3),
        st.sampled_from(["a", "b"]),
        st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=5,
)


def batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """Rows as a step makes them, whose JSON columns are strings."""
    types = [pa.string() if isinstance(field.type, pa.JsonType) else field.type for field in SCHEMA]
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    return pa.RecordBatch.from_arrays([pa.array(c, t) for c, t in zip(columns, types, strict=True)], SCHEMA.names)


def by_one_writer(batches: list[pa.RecordBatch], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The file that pyarrow makes, with the options of `encode`."""
    seen: list[dict[str, Any]] = []

    class Spy(pq.ParquetWriter):
        def __init__(self, where: Any, schema: pa.Schema, **options: Any) -> None:
            seen.append(options)
            super().__init__(where, schema, **options)

    monkeypatch.setattr(pq, "ParquetWriter", Spy)
    encode(batches[0], SCHEMA)
    monkeypatch.undo()
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, **seen[0]) as writer:
        for rows in batches:
            columns = [
                pa.ExtensionArray.from_storage(field.type, column) if isinstance(field.type, pa.JsonType) else column
                for field, column in zip(SCHEMA, rows.columns, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=max(1, rows.num_rows))
    return sink.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS.filter(bool), min_size=1, max_size=20))
def test_a_shard_has_the_bytes_of_one_writer(tmp_path_factory, batches):
    path: Path = tmp_path_factory.mktemp("shards") / "one.parquet"
    writer = ShardWriter(path)
    made = [batch(rows) for rows in batches]
    for rows in made:
        writer.write(encode(rows, SCHEMA))
    size, sha256 = writer.close()
    data = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        assert data == by_one_writer(made, patch)
    assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert writer.rows == sum(map(len, batches)) == pq.read_metadata(path).num_rows
    file = pq.ParquetFile(path, page_checksum_verification=True)
    assert [file.read_row_group(n).num_rows for n in range(file.num_row_groups)] == list(map(len, batches))


def footer_of(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    data = sink.getvalue()
    end = len(data) - len(MAGIC) - 4
    return data[end - int.from_bytes(data[end : end + 4], "little") : end]


WIDE = pa.table({f"c{n}": [n, -n, None] for n in range(40)})
NESTED = pa.table({"a": [[{"b": "x", "c": [1.5]}]], "d": [b"\x00\xff"]})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": "1.0", "data_page_version": "2.0", "use_dictionary": False},
        {"write_page_index": True, "store_schema": False},
        {"row_group_size": 1, "write_statistics": False},
        {"sorting_columns": [pq.SortingColumn(0)]},
    ],
    ids=str,
)
@pytest.mark.parametrize("table", [WIDE, NESTED], ids=["wide", "nested"])
def test_a_footer_is_read_and_written_without_a_change(table, options):
    data = footer_of(table, **options)
    assert footer.merge([(0, data)]) == data


def test_row_groups_of_two_schemas_make_no_file():
    with pytest.raises(ValueError, match="another schema"):
        footer.merge([(0, footer_of(WIDE)), (1000, footer_of(NESTED))])
    with pytest.raises(ValueError, match="without a row group"):
        footer.merge([])


def test_pages_are_found_where_they_have_moved_to():
    apart = [footer_of(WIDE, write_page_index=True, row_group_size=2) for _ in range(2)]
    merged = footer.merge([(0, apart[0]), (1000, apart[1])])
    file = io.BytesIO(MAGIC + merged + len(merged).to_bytes(4, "little") + MAGIC)
    metadata: Any = pq.read_metadata(file)
    assert metadata.num_rows == 6
    assert metadata.num_row_groups == 4
    for number in range(2):
        first, second = (metadata.row_group(number + more) for more in (0, 2))
        for column in range(40):
            one, other = first.column(column), second.column(column)
            for name in ("data_page_offset", "dictionary_page_offset"):
                assert getattr(other, name) == getattr(one, name) + 1000
            assert other.has_column_index
            assert one.total_compressed_size == other.total_compressed_size


@pytest.mark.parametrize("error", [OSError("zstd"), pa.ArrowInvalid("nulls")], ids=["system", "arrow"])
def test_rows_that_cannot_be_written_are_no_damage_of_the_input(error, monkeypatch):
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "encode", broken)
    result = Result(batch([]), [], Tally(), b"", b"", [], [])
    with pytest.raises(InternalError, match="cannot be written"):
        worker.write_result(io.BytesIO(), result, SCHEMA)


def test_a_worker_without_memory_for_encoding_dies_of_it(monkeypatch):
    def full(*_: Any) -> None:
        raise pa.ArrowMemoryError("full")

    monkeypatch.setattr(worker, "encode", full)
    with pytest.raises(MemoryError):
        worker.write_result(io.BytesIO(), Result(batch([]), [], Tally(), b"", b"", [], []), SCHEMA)
