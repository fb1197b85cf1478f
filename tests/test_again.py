"""Shards of every layout are judged, read and converted again without a change."""

from __future__ import annotations

from pathlib import Path

import pytest

import datakit
from datakit.formats import FORMATS
from datakit.schema import LAYOUTS

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"

ONE_OF = {
    layout: next(f for f in FORMATS.values() if f.layout == layout)
    for layout in LAYOUTS
    if any(f.layout == layout for f in FORMATS.values())
}


def test_every_layout_has_a_format_or_is_reached_by_one():
    made_of_tokens = {x.name for x in LAYOUTS if x.kind == "tokenized" and x.form != "tokens"}  # by `datakit format`
    assert {x.name for x in LAYOUTS} - {x.name for x in ONE_OF} == made_of_tokens


@pytest.mark.parametrize("layout", ONE_OF, ids=lambda layout: layout.name)
def test_shards_are_a_fixed_point(layout, tmp_path):
    source = FIXTURES / ONE_OF[layout].name / "good.jsonl"
    first = datakit.convert(source, tmp_path / "one", format=ONE_OF[layout].name, workers=1)
    assert first.exit_code == 0, first.to_json()
    judged = datakit.validate(tmp_path / "one", workers=1)
    assert (judged.exit_code, judged.rows_in, judged.kind, judged.form) == (0, first.rows_out, layout.kind, layout.form)
    again = datakit.convert(tmp_path / "one", tmp_path / "two", workers=1)
    assert (again.exit_code, again.rows_out) == (0, first.rows_out), again.to_json()
    one, two = (list(datakit.load(tmp_path / name).rows(all=True)) for name in ("one", "two"))
    assert one == two
    assert datakit.load(tmp_path / "one").to_arrow().schema == datakit.load(tmp_path / "two").to_arrow().schema
    assert datakit.stats(tmp_path / "one").facts["rows"] == first.rows_out
    exported = datakit.export(tmp_path / "one", tmp_path / "rows.jsonl")
    assert exported.rows_out == first.rows_out
