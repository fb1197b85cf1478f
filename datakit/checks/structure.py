"""Structure: lines, values and columns. Most of these are raised where the row is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from datakit.checks.declare import Check, Row, Seen
from datakit.checks.turns import BLANK
from datakit.findings import shown
from datakit.formats.declare import SYSTEM
from datakit.terminal import plural

ANSWERS: Final = frozenset({"completion", "completions", "chosen"})
MEDIA: Final = frozenset({"audios", "audio", "videos", "video"})
PROMPT: Final = frozenset({"context", "document", "documents", "history", "input", "instruction", "passage", "passages"} | SYSTEM.keys())  # fmt: skip
"""Columns that hold a part of the prompt elsewhere: Alpaca (instruction, input, history, system), Dolly and SQuAD
(context), BoolQ (passage), MS MARCO (passages), XSum (document), chat templates (documents), OpenOrca (system_prompt)."""


def empty_record(record: Row, rest: Row) -> Seen:
    for name, value in record.items():
        if name in ("text", "input_ids") or (name == "prompt" and record.keys().isdisjoint(ANSWERS)):
            if not (value.strip(BLANK) if isinstance(value, str) else value):
                yield name, "there is nothing in it"


def media_counts(record: Row, rest: Row) -> Seen:
    images = record.get("images")
    if not images:
        return
    # one conversation: a rejected answer has the same prompt
    values = [record.get(name) or () for name in ("messages", "prompt", "chosen", "completion")]
    contents = [[v] if isinstance(v, str) else [message.get("content") for message in v] for v in values]
    places = sum(_places(content) for each in contents for content in each)
    if places and places != len(images):
        yield "images", f"{plural(places, 'image placeholder')} for {plural(len(images), 'image')}"


def _places(content: Any) -> int:
    if isinstance(content, str):
        return content.count("<image>")
    if isinstance(content, list):
        return sum(isinstance(part, dict) and part.get("type") in ("image", "image_url") for part in content)
    return 0


def media_left(record: Row, rest: Row) -> Seen:
    for name in sorted(MEDIA):
        if rest.get(name):
            yield name, "kept in dk_meta; no trainer column carries it"


def prompt_left(record: Row, rest: Row) -> Iterator[str]:
    """The columns with a part of a prompt that is nowhere in what the model is asked.

    What a reward needs stands at top level and may well be a context; a system text there is one that was left out.
    """
    names = PROMPT & rest.keys() | SYSTEM.keys() & record.keys()
    asked = next((record[name] for name in ("messages", "prompt", "text", "chosen") if name in record), None)
    if not names or asked is None:
        return
    if isinstance(asked, list) and "prompt" not in record:
        asked = asked[:-1]  # what only the answer says was not given
    given = "\0".join(_texts(asked))
    for name in sorted(names):
        value = record.get(name, rest.get(name))
        if isinstance(value, str | list) and any(not _stands_in(text.strip(BLANK), given) for text in _texts(value)):
            yield name


def prompt_left_out(record: Row, rest: Row) -> Seen:
    for name in prompt_left(record, rest):
        where = "a column of its own" if name in record else "dk_meta"
        yield name, f"kept in {where}; the model is not given it: {shown(record.get(name, rest.get(name)))}"


def _stands_in(text: str, given: str) -> bool:
    """Whether a text stands in another one, not just as a piece of a word."""
    at = given.find(text)
    end = at + len(text)
    return not text or (at >= 0 and not any(map(str.isalnum, given[at - 1 : at] + given[end : end + 1])))


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


STRUCTURE: Final = (
    Check("DK101", "json-invalid", "error", "Every line is one JSON value.", "Repair the line; the byte offset says where it breaks."),
    Check("DK102", "encoding-invalid", "error", "Text is valid UTF-8 without lone surrogates.", "Re-export the file as UTF-8."),
    Check("DK103", "column-missing", "error", "The columns that the format needs are present.", "Fill it in or correct its name; where the column has another name, say so with --map."),
    Check("DK104", "type-mismatch", "error", "Every value has the type that its column needs.", "Repair the value; the path says which."),
    Check("DK105", "format-drift", "warning", "All rows of a file have one format.", "Split the file by format if the rows should not be mixed."),
    Check("DK106", "empty-record", "error", "A row has content.", "Remove the row.", "texts", empty_record, raised=True),
    Check("DK107", "unknown-keys", "note", "Keys that no column takes are kept in dk_meta.", "Nothing, or map them with --map."),
    Check("DK108", "duplicate-json-key", "error", "No object has the same key twice; parsers disagree on which one counts.", "Keep one of the two."),
    Check("DK109", "nonfinite-number", "error", "Numbers are finite; NaN and Infinity are not JSON.", "Write null or a number."),
    Check("DK111", "media-count", "error", "There are as many images as placeholders.", "Add the missing image or remove the placeholder.", "media", media_counts),
    Check("DK112", "not-an-object", "error", "Every line is a JSON object.", "Wrap the value in an object with named columns."),
    Check("DK113", "number-out-of-range", "error", "Integers fit 64 bits; longer ones would lose digits.", "Write the number as a text."),
    Check("DK114", "too-deep", "error", "Values nest at most 64 levels.", "Flatten the value or write it as a text."),
    Check("DK115", "line-too-long", "error", "A line is at most 64 MiB.", "Split the row; nothing trains on that much text at once."),
    Check("DK116", "several-values", "error", "A line holds one JSON value only.", "Put each object on a line of its own."),
    Check("DK117", "media-unsupported", "warning", "Audio and video have no trainer column.", "Remove the rows, or keep them for a trainer of your own.", "media", media_left),
    Check("DK118", "empty-file", "error", "An input holds at least one row.", "Leave the file out, or find out why it is empty.", "set"),
    Check("DK119", "byte-order-mark", "note", "A byte order mark at the start of a file is removed.", "Nothing."),
    Check("DK120", "not-lossless", "error", "A row can be carried to the form that --to asks for without loss.", "Ask for another form, or quarantine the row."),
    Check("DK121", "resource-limit", "error", "A row can be read within the memory of a worker.", "Split the row."),
    Check("DK122", "splits-in-names", "note", "Files whose names tell different splits go into different splits.", "Name the splits with --split; nothing, if all is meant for one.", "set"),
    Check("DK123", "input-repeated", "warning", "No two inputs have the same bytes.", "Leave one out; in two splits the same rows are trained on and measured with.", "set"),
    Check("DK124", "media-tag", "warning", "Tags of media in a text have a column with the media.", "Name the column with the images in a --map file, or take the tags out; as they are, they are trained as plain text."),
    Check("DK125", "value-as-text", "note", "Bytes, decimals and times of Parquet and Arrow files, which JSON lacks, become texts that lose nothing.", "Nothing; docs/kinds.md says which texts."),
    Check("DK126", "nonfinite-as-text", "warning", "Numbers of Parquet and Arrow files are finite; NaN and infinity, which JSON lacks, become texts.", "Write null or a number."),
    Check("DK127", "files-left-out", "note", "Every file in a folder that is named is read, or is a page such as README.", "Name the files one by one if they hold rows; a file is known by its suffix, or by its first bytes where it is named itself.", "set"),
    Check("DK128", "prompt-left-out", "warning", "A column whose name tells a part of the prompt is given to the model.", "Say what such a column is with --map, for example input = \"context\" under [columns] (docs/add-a-format.md); rename it if it is no part of the prompt.", "left", prompt_left_out),
)  # fmt: skip
