"""What divides the cells of a CSV file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import datakit
from datakit.errors import AmbiguousFormat
from datakit.reading.delimiter import NAMES, told


@pytest.mark.parametrize(
    ("text", "usual", "delimiter"),
    [
        ("prompt;completion\na, b and c;d\n", ",", ";"),
        ("prompt\tcompletion\na, b;c\td\n", ",", "\t"),
        ("prompt|completion\na|b\n", ",", "|"),
        ("prompt,completion\na,b\n", "\t", ","),
        ('"a;b",c\n"x;y",z\n', ",", ","),
        ("question; short,answer\nfoo,bar\n", ",", ","),
        ("prompt;completion\na;b\nc;d\nx,y\n", ",", ";"),
        ('prompt;completion\n"a\nb;c, d";e\n', ",", ";"),
        ('prompt;completion\n"a" b;c\n', ",", ";"),
        ("\ufeffprompt;completion\r\na;b\r\n", ",", ";"),
        ("text\na, b; c\n", ",", ","),
        ("text\na, b; c\n", "\t", "\t"),
        ("prompt;completion\n", ",", ";"),
        ("a;b,c\n", ",", ","),
        ("", ",", ","),
        ("a,a\nb,c\n", ",", ","),
    ],
)
def test_told(text: str, usual: str, delimiter: str) -> None:
    assert told([text.encode()], "x.csv", usual) == delimiter


def test_two_that_fit_are_a_question() -> None:
    with pytest.raises(AmbiguousFormat) as caught:
        told([b"prompt;a,completion\nx;y,z\n"], "x.csv", ",")
    assert caught.value.message.startswith("x.csv: its columns may be divided by commas (columns 'prompt;a', 'completion') or semi")  # fmt: skip
    assert "JSON Lines" in caught.value.hint


cells = st.text("ab ,;|\t\n\"'é", max_size=6)
tables = st.integers(2, 4).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=6))


@given(tables, st.sampled_from(list(NAMES)), st.integers(1, 9))
def test_a_file_that_was_written_with_one_is_read_with_it(table: list[list[str]], delimiter: str, size: int) -> None:
    """Where every cell is quoted, no other delimiter gives the header two names."""
    written = io.StringIO()
    header = [f"column {n}" for n in range(len(table[0]))]
    csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([header, *table])
    data = written.getvalue().encode()
    assert told([data[at : at + size] for at in range(0, len(data), size)], "x.csv", ",") == delimiter


def test_it_is_said_and_planned(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction;output\nName a fruit, please.;Apple.\n", "utf-8")
    report = datakit.convert(path, tmp_path / "out", workers=1)
    assert report.exit_code == 0
    assert report.detection[0]["evidence"][0] == "cells divided by semicolons"
    assert datakit.load(tmp_path / "out").manifest["plan"]["delimiters"] == {str(path): ";"}
    (row,) = datakit.load(tmp_path / "out")
    assert [message["content"] for message in row["messages"]] == ["Name a fruit, please.", "Apple."]
