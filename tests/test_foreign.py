"""Values that JSON lacks become texts that lose nothing, and are told of."""

from __future__ import annotations

import base64
import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import datakit
from datakit.reading.foreign import as_json, holds_foreign

DAY = datetime.datetime(2024, 1, 31, 12, 30)

VALUES: dict[str, tuple[Any, list[Any]]] = {
    "bytes": (pa.array([b"\xff", None]), [{"$base64": "/w=="}, None]),
    "large bytes": (pa.array([b""], pa.large_binary()), [{"$base64": ""}]),
    "fixed bytes": (pa.array([b"ab"], pa.binary(2)), [{"$base64": "YWI="}]),
    "decimal": (pa.array([Decimal("12.50")]), ["12.50"]),
    "date": (pa.array([DAY.date()]), ["2024-01-31"]),
    "a far date": (pa.array([10**7], pa.int32()).cast(pa.date32()), ["29349-01-26"]),
    "time": (pa.array([DAY.time()]), ["12:30:00"]),
    "time in ns": (pa.array([1], pa.time64("ns")), ["00:00:00.000000001"]),
    "moment": (pa.array([DAY], pa.timestamp("us")), ["2024-01-31T12:30:00"]),
    "moment in a zone": (pa.array([DAY], pa.timestamp("us", "UTC")), ["2024-01-31T12:30:00+00:00"]),
    "moment in ns": (pa.array([1], pa.timestamp("ns")), ["1970-01-01T00:00:00.000000001"]),
    "moment in ns, in a zone": (pa.array([1], pa.timestamp("ns", "UTC")), ["1970-01-01T00:00:00.000000001+00:00"]),
    "duration": (pa.array([1, -1500], pa.duration("ms")), ["PT0.001S", "-PT1.500S"]),
    "duration in ns": (pa.array([1], pa.duration("ns")), ["PT0.000000001S"]),
    "interval": (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), ["P1M2DT0.000000003S"]),
    "not finite": (pa.array([math.nan, math.inf, -math.inf, 0.5]), ["NaN", "Infinity", "-Infinity", 0.5]),
    "audio": (pa.array([{"bytes": b"a", "path": "a.wav"}]), [{"bytes": {"$base64": "YQ=="}, "path": "a.wav"}]),
    "in a list": (pa.array([[b"a", None], []]), [[{"$base64": "YQ=="}, None], []]),
    "in a map": (pa.array([[("k", b"a")]], pa.map_(pa.string(), pa.binary())), [[["k", {"$base64": "YQ=="}]]]),
    "by number": (pa.array([b"a", b"a"]).dictionary_encode(), [{"$base64": "YQ=="}] * 2),
}


@pytest.mark.parametrize("name", VALUES)
def test_as_json(name: str) -> None:
    column, wanted = VALUES[name]
    texts: set[str] = set()
    odd: set[str] = set()
    assert holds_foreign(column)
    assert [as_json(value, texts, odd) for value in column] == wanted
    assert texts | odd


@pytest.mark.parametrize("column", [pa.array([1.5, None]), pa.array(["a"]), pa.array([[{"a": True}]]), pa.nulls(2)])
def test_what_json_has_is_left_alone(column: Any) -> None:
    assert not holds_foreign(column)


@given(st.binary(), st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_nothing_is_lost(data: bytes, number: Decimal) -> None:
    column = pa.array([{"data": data, "number": number}])
    made = as_json(column[0], set(), set())
    assert base64.b64decode(made["data"]["$base64"]) == data
    assert Decimal(made["number"]) == number


def shards(tmp_path: Path, kind: str, **more: Any) -> tuple[datakit.Report, list[dict[str, Any]]]:
    """The report and all columns of two rows with more columns, which `validate` and `convert` see alike."""
    columns: dict[str, Any] = {"prompt": ["a", "b"]} if kind == "prompt" else {"text": ["a", "b"]}
    pq.write_table(pa.table({**columns, **more}), tmp_path / "in.parquet")
    report = datakit.convert(tmp_path / "in.parquet", tmp_path / "out", to=kind, workers=1)
    judged = datakit.validate(tmp_path / "in.parquet", to=kind, workers=1)
    assert judged.findings == report.findings
    assert (judged.exit_code, report.exit_code) == (0, 0)
    return report, list(datakit.load(tmp_path / "out").rows(all=True))


def found(report: datakit.Report) -> dict[str, tuple[int, list[str]]]:
    return {s.id: (s.count, [f"{f['path']}: {f['note']}" for f in s.first]) for s in report.findings}


@pytest.mark.parametrize("kind", ["sft:text", "prompt"])
def test_bytes_that_no_column_takes(kind: str, tmp_path: Path) -> None:
    report, rows = shards(tmp_path, kind, sound=pa.array([b"x", None]))
    kept = [row["sound"] if kind == "prompt" else (row["dk_meta"] or {}).get("sound") for row in rows]
    assert kept == [{"$base64": "eA=="}, None]
    assert found(report)["DK125"] == (1, [": as text: sound (binary)"])


def test_a_moment_in_a_side_column(tmp_path: Path) -> None:
    _, rows = shards(tmp_path, "prompt", day=pa.array([DAY.date()] * 2))
    assert [row["day"] for row in rows] == ["2024-01-31"] * 2


def test_nan_is_counted(tmp_path: Path) -> None:
    report, rows = shards(tmp_path, "sft:text", score=pa.array([0.5, math.nan]))
    assert [row["dk_meta"]["score"] for row in rows] == [0.5, "NaN"]
    assert found(report)["DK126"] == (1, [": as text: score (NaN)"])


def test_they_can_be_errors(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "score": [0.5, math.nan], "sound": [b"", b""]})
    pq.write_table(table, tmp_path / "in.parquet")
    report = datakit.validate(tmp_path / "in.parquet", severity={"DK126": "error", "DK125": "off"}, workers=1)
    assert (report.rejected, report.exit_code) == ({"DK126": 1}, 1)
    assert "DK125" not in found(report)


def test_a_reject_holds_them_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", ""], "sound": [b"a", b"b"]}), tmp_path / "in.parquet")
    datakit.convert(
        tmp_path / "in.parquet", tmp_path / "out", on_bad_row="quarantine", max_bad="1 row", format="text", workers=1
    )
    [line] = (tmp_path / "out/rejects/train-00000.jsonl").read_text("utf-8").splitlines()
    assert json.loads(json.loads(line)["raw"]) == {"text": "", "sound": {"$base64": "Yg=="}}


def test_all_columns_of_a_row_are_named(tmp_path: Path) -> None:
    report, _ = shards(tmp_path, "sft:text", sound=pa.array([b"x"] * 2), price=pa.array([Decimal("1.5")] * 2))
    count, notes = found(report)["DK125"]
    assert (count, notes[0]) == (2, ": as text: sound (binary), price (decimal128(2, 1))")
