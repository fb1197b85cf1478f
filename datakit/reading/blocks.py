"""Blocks: a file cut into pieces of whole, undecoded rows.

Where a block ends depends on the decoded bytes alone, never on how they arrived, on time or on the number of workers;
shards are made of whole blocks, so the same input gives the same shards. JSON Lines are cut at line feeds only, JSON
arrays at the ends of their elements by a scanner that never holds more than one block and one element, CSV at the
ends of its records. Parquet and Arrow blocks only name rows: a worker opens the file, so that a damaged one cannot
take this process with it.
"""

from __future__ import annotations

import base64
import codecs
import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import orjson

from datakit.errors import UnreadableInput, UsageError
from datakit.findings import shown
from datakit.reading.limits import BLOCK, MAX_LINE

BOM: Final = b"\xef\xbb\xbf"

Span = tuple[int, int, int, int]
"""Start and end in the payload, the row or line number, and the offset in the decoded file (-1 where it has none)."""


@dataclass(slots=True)
class Block:
    """Rows that are decoded together.

    Attributes:
        source: number of the source in the plan.
        first: line number (JSON Lines) or row number of the first row, from 1.
        offset: where the payload begins in the decoded file, in bytes.
        size: decoded bytes that the block stands for; shards are cut by the sum of these.
        payload: the rows; empty where `rows` names them in a file.
        spans: where each row lies in the payload; None for JSON Lines.
        rows: (file, part, start, stop) of rows in a Parquet or Arrow file.
        where: (file, offset, bytes) of a payload that whoever works on it reads itself; see `load`.
        long: (line, offset, bytes) of lines that were too long to hold.
        notes: such as a byte order mark that was removed.
    """

    source: int
    first: int
    offset: int
    size: int
    payload: bytes = b""
    spans: list[Span] | None = None
    rows: tuple[str, int, int, int] | None = None
    where: tuple[str, int, int] | None = None
    long: list[tuple[int, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    header: Sequence[str] = ()
    """For CSV, the names of its columns."""
    origins: list[tuple[str, int]] | None = None
    """For repaired rows, the file and row that each came from."""

    def load(self) -> None:
        """Read a payload that lies in a file.

        Raises:
            UnreadableInput: the file has become shorter.
        """
        if self.where is not None:
            path, offset, size = self.where
            with open(path, "rb") as handle:  # noqa: PTH123
                self.payload = os.pread(handle.fileno(), size, offset)
            if len(self.payload) < size:
                raise UnreadableInput(f"{path}: changed while it was read", "Run again when nothing writes to it.")
            self.where = None


def without_bom(chunks: Iterator[bytes]) -> tuple[bool, Iterator[bytes]]:
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= len(BOM):
            break
    found = start.startswith(BOM)
    return found, chain([start[len(BOM) :] if found else start], chunks)


SameGroup = Callable[[bytes, bytes], bool]


def line_blocks(
    chunks: Iterable[bytes], source: int, path: str, target: int = BLOCK, same_group: SameGroup | None = None
) -> Iterator[Block]:
    """JSON Lines as blocks of at least `target` bytes, each ended at the first line feed after them.

    Args:
        same_group: for formats whose neighbouring rows form one record, whether two lines belong together; a block
            then ends where they do not.

    Raises:
        UnreadableInput: the file uses carriage returns alone as line ends.
    """
    found, stream = without_bom(iter(chunks))
    notes = ["DK119"] if found else []
    buffer, first, offset = b"", 1, len(BOM) if found else 0
    long: list[tuple[int, int, int]] = []
    pending: list[bytes] = []
    held, ended = 0, False
    while not ended:
        chunk = next(stream, None)
        ended = chunk is None
        if chunk:
            pending.append(chunk)
            held += len(chunk)
            if len(buffer) + held < target:
                continue
        buffer = b"".join((buffer, *pending))
        pending, held = [], 0
        while buffer:
            end = buffer.find(b"\n", target - 1) + 1
            if end == 0 and ended:
                end = len(buffer)
            start_of_last = buffer.rfind(b"\n", 0, max(end - 1, 0) if end else len(buffer)) + 1
            if (end or len(buffer)) - start_of_last > MAX_LINE:
                if start_of_last:
                    end = start_of_last
                else:
                    length, buffer = _skip_line(buffer, stream)
                    long.append((first, offset, length))
                    first, offset = first + 1, offset + length
                    continue
            if end == 0:
                break
            if same_group and not (ended and end == len(buffer)):
                grown = _end_of_group(buffer, end, same_group)
                if grown is None and not ended:
                    break
                end = grown or len(buffer)
            payload, buffer = buffer[:end], buffer[end:]
            lines = payload.count(b"\n") + (not payload.endswith(b"\n"))
            if first == 1 and lines == 1 and b"\r" in payload.rstrip(b"\r\n") and _carriage_returns_only(payload):
                raise UnreadableInput(
                    f"{path}: lines end on carriage returns alone", "Convert it, for example with tr '\\r' '\\n'."
                )
            yield Block(source, first, offset, len(payload), payload, long=long, notes=notes)
            first, offset, long, notes = first + lines, offset + len(payload), [], []
    if long or notes:
        yield Block(source, first, offset, sum(size for _, _, size in long), long=long, notes=notes)


def _line_feeds(data: bytes, start: int, end: int) -> int:
    """How many there are; `bytes.count` looks at every byte, and rows are long."""
    count = 0
    while (start := data.find(b"\n", start, end) + 1) > 0:
        count += 1
    return count


def file_blocks(chunks: Iterable[bytes], source: int, path: str, real: str, target: int = BLOCK) -> Iterator[Block]:
    """The same blocks as `line_blocks`, of a plain file that workers can read: only their places are passed on.

    Args:
        chunks: the bytes of the file, which are hashed on the way.
        real: where the file is.
    """
    found, stream = without_bom(iter(chunks))
    start = position = len(BOM) if found else 0  # of the block, and of the chunk
    notes = ["DK119"] if found else []
    long: list[tuple[int, int, int]] = []
    first, lines = 1, 0
    line_start = start  # of the line that is being passed
    skipping = False

    def block(end: int) -> Block:
        made = Block(source, first, start, end - start, where=(real, start, end - start), long=long, notes=notes)
        if first == 1 and lines == 1:
            made.load()
            if b"\r" in made.payload.rstrip(b"\r\n") and _carriage_returns_only(made.payload):
                hint = "Convert it, for example with tr '\\r' '\\n'."
                raise UnreadableInput(f"{path}: lines end on carriage returns alone", hint)
        return made

    for chunk in stream:
        at = 0
        while at < len(chunk):
            wanted = at if skipping else max(at, start + target - 1 - position)
            end = chunk.find(b"\n", wanted) + 1 if wanted < len(chunk) else 0
            last = chunk.rfind(b"\n", at, end - 1 if end else len(chunk)) + 1
            if last:
                lines += _line_feeds(chunk, at, last)
                line_start = position + last
            stop = position + (end or len(chunk))
            if not skipping and stop - line_start > MAX_LINE:
                if line_start > start:
                    yield block(line_start)
                    long, notes = [], []
                first, lines, start, skipping = first + lines, 0, line_start, True
            if not end:
                break
            at, lines = end, lines + 1
            if skipping:
                long.append((first, start, stop - start))
                skipping = False
            else:
                yield block(stop)
                long, notes = [], []
            first, lines, start, line_start = first + lines, 0, stop, stop
        position += len(chunk)
    if skipping:
        long.append((first, start, position - start))
        first, start = first + 1, position
    elif position > start:
        lines += position > line_start
        yield block(position)
        long, notes = [], []
    if long or notes:
        yield Block(source, first, start, sum(size for _, _, size in long), long=long, notes=notes)


def _carriage_returns_only(payload: bytes) -> bool:
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        return True
    return False


def _skip_line(buffer: bytes, stream: Iterator[bytes]) -> tuple[int, bytes]:
    """Pass over the line at the start of the buffer; its length and what follows it."""
    length, end = 0, buffer.find(b"\n") + 1
    while not end:
        length += len(buffer)
        buffer = next(stream, b"")
        if not buffer:
            return length, b""
        end = buffer.find(b"\n") + 1
    return length + end, buffer[end:]


def _end_of_group(buffer: bytes, end: int, same_group: SameGroup) -> int | None:
    """The first line end from `end` on after which another group begins; None where it is not in the buffer yet."""
    last = buffer[buffer.rfind(b"\n", 0, end - 1) + 1 : end]
    while True:
        next_end = buffer.find(b"\n", end) + 1
        if next_end == 0:
            return None
        line = buffer[end:next_end]
        if not same_group(last, line):
            return end
        last, end = line, next_end


_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.S)
_BRACKET: Final = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING.pattern + rb")*+(?:([\[{])|([\]}])|)", re.S)
_WORD: Final = re.compile(rb"[-+.\w]*+")
_KNOWN: Final = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?|true|false|null")
_WHITE: Final = re.compile(rb"[ \t\r\n]*+")
_SHOWN: Final = 40
"""Characters of a text that has no business where it stands."""
_IN_ARRAY: Final = "Repair the file there; nothing between two rows is passed over."
_NO_ARRAY: Final = "Repair the file there; or, if each line is a row, name it .jsonl: each bad line is a finding then."


class _Scan:
    """Where a JSON text is read. It holds the value that stands there, and passes over white space alone."""

    __slots__ = ("at", "base", "buffer", "hint", "line", "path", "stream")

    def __init__(self, chunks: Iterable[bytes], path: str) -> None:
        found, self.stream = without_bom(iter(chunks))
        self.path, self.buffer, self.line, self.hint = path, b"", 1, _NO_ARRAY
        self.at, self.base = 0, len(BOM) if found else 0  # in the buffer, and of the buffer in the text

    def more(self) -> bool:
        """Read on and let go of what is done with; False at the end of the text."""
        chunk = next(self.stream, None)
        if chunk is None:
            return False
        if len(self.buffer) - self.at > MAX_LINE + (1 << 20):
            raise UnreadableInput(f"{self.path}: the value at line {self.line} is longer than {MAX_LINE} bytes")
        self.base += self.at
        self.buffer, self.at = self.buffer[self.at :] + chunk, 0
        return True

    def go_to(self, end: int) -> None:
        self.line += self.buffer.count(b"\n", self.at, end)
        self.at = end

    def peek(self) -> bytes:
        """The next byte that is no white space; empty at the end of the text."""
        while True:
            match = _WHITE.match(self.buffer, self.at)
            self.go_to(match.end() if match else self.at)
            if self.at < len(self.buffer):
                return self.buffer[self.at : self.at + 1]
            if not self.more():
                return b""

    def value(self) -> tuple[bytes, int, int]:
        """The value that stands next, its offset and its line."""
        first = self.peek()
        if not first:
            raise self.cut()
        end = self._end_of_brackets() if first in b"[{" else self._end_of_scalar(first == b'"')
        found = self.buffer[self.at : end], self.base + self.at, self.line
        self.go_to(end)
        return found

    def _end_of_brackets(self) -> int:
        depth = done = 0  # done: length of what was scanned; bytes that come later go on there
        while True:
            for match in _BRACKET.finditer(self.buffer, self.at + done):
                kind = match.lastindex
                if kind is None:  # the end of what has come, or a string that goes on behind it
                    break
                depth += 1 if kind == 1 else -1
                if depth == 0:
                    return match.end()
                done = match.end() - self.at
            if not self.more():
                raise self.cut()

    def _end_of_scalar(self, quoted: bool) -> int:
        pattern = _STRING if quoted else _WORD
        while (match := pattern.match(self.buffer, self.at)) is None or match.end() == len(self.buffer):
            if not self.more():
                break
        if match is None:
            raise self.cut()
        if not quoted and not _KNOWN.fullmatch(match.group()):
            raise self.refused("a JSON value")
        return match.end()

    def cut(self) -> UnreadableInput:
        return UnreadableInput(
            f"{self.path}: the text ends inside a value that began at line {self.line}", "Fetch the file again."
        )

    def refused(self, allowed: str, where: str = "") -> UnreadableInput:
        """What to raise of the text that stands next."""
        while len(self.buffer) - self.at < 4 * _SHOWN and self.more():
            pass
        line = self.buffer[self.at : self.at + 4 * _SHOWN].split(b"\n")[0].rstrip(b"\r").decode("utf-8", "replace")
        found = f"{self.path}:{self.line}: {shown(line, _SHOWN)}{where}"
        return UnreadableInput(f"{found}, where only {allowed} may stand", self.hint)


def elements(chunks: Iterable[bytes], path: str) -> Iterator[tuple[bytes, int, int]]:
    """The elements of a JSON array, or JSON values one after another, as (bytes, offset, line).

    Whether they are right inside is left to those who parse them; between them nothing is passed over but white space,
    and in an array one comma.

    Raises:
        UnreadableInput: something else stands there, or the text ends inside a value.
    """
    text = _Scan(chunks, path)
    if text.peek() != b"[":
        while text.peek():
            yield text.value()
        return
    text.hint = _IN_ARRAY
    text.go_to(text.at + 1)
    following = text.peek()
    if following != b"]":
        yield text.value()
        while (following := text.peek()) == b",":
            text.go_to(text.at + 1)
            yield text.value()
    if not following:
        raise text.cut()
    if following != b"]":
        raise text.refused("a comma or ]")
    text.go_to(text.at + 1)
    if text.peek():
        raise text.refused("white space", " after the end of the array")


def element_blocks(chunks: Iterable[bytes], source: int, path: str, target: int = BLOCK) -> Iterator[Block]:
    """Elements of a JSON array as blocks."""
    return _gather(((data, offset) for data, offset, _ in elements(chunks, path)), source, target)


def _gather(rows: Iterable[tuple[bytes, int]], source: int, target: int, header: Sequence[str] = ()) -> Iterator[Block]:
    pieces: list[bytes] = []
    spans: list[Span] = []
    size, first, begin = 0, 1, 0
    number = 0
    for number, (data, offset) in enumerate(rows, start=1):
        if not pieces:
            first, begin = number, offset
        spans.append((size, size + len(data), number, offset))
        pieces.append(data)
        size += len(data)
        if size >= target:
            yield Block(source, first, begin, size, b"".join(pieces), spans, header=header)
            pieces, spans, size = [], [], 0
    if pieces:
        yield Block(source, first, begin, size, b"".join(pieces), spans, header=header)


def csv_blocks(chunks: Iterable[bytes], source: int, path: str, delimiter: str, target: int = BLOCK) -> Iterator[Block]:
    """CSV records as JSON objects; an empty cell is an absent key, since CSV has no other way to say it.

    A record with undecodable bytes is handed on as it stands, and one with the wrong number of cells as a list of them,
    so that the decoder rejects it.

    Raises:
        UnreadableInput: a quote is never closed, or the header is missing or names a column twice.
    """
    _, stream = without_bom(iter(chunks))
    csv.field_size_limit(MAX_LINE)
    held: list[str] = []  # the lines of the record that is being read
    reader = csv.reader(_held(text_lines(stream), held), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) != len(header):
            raise UnreadableInput(f"{path}: the header names a column twice: {', '.join(header)}")
        held.clear()
        yield from _gather(_csv_rows(reader, header, held), source, target, header)
    except csv.Error as error:
        opened = _open_quote("".join(held), delimiter)
        if opened is None:
            raise UnreadableInput(f"{path}:{reader.line_num}: {error}", "Look at the quotes of that line.") from None
        raise UnreadableInput(
            f"{path}:{reader.line_num - len(held) + 1 + opened}: a quote opens here and its cell does not end: "
            f"{error}, line {reader.line_num}",
            "Close the quote; one that belongs to the text is written twice.",
        ) from None


def _held(lines: Iterable[str], held: list[str]) -> Iterator[str]:
    for line in lines:
        held.append(line)
        yield line


def _open_quote(record: str, delimiter: str) -> int | None:
    """The line, from 0, where a quote opens the first cell that is not closed before its end."""
    cell = re.compile(rf'(?:"(?:[^"]++|"")*+"|(?!")[^{delimiter}\r\n]*+)(?:[{delimiter}]|\r?\n|\Z)')
    at = 0
    while at < len(record) and (match := cell.match(record, at)):
        at = match.end()
    return record.count("\n", 0, at) if record[at : at + 1] == '"' else None


def text_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Decoded lines with their line feeds, and undecodable bytes as surrogates."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    rest = ""
    for chunk in chunks:
        rest += decoder.decode(chunk)
        *lines, rest = rest.split("\n")
        yield from [line + "\n" for line in lines]
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest


def _csv_rows(reader: Iterator[list[str]], header: list[str], held: list[str]) -> Iterator[tuple[bytes, int]]:
    for cells in reader:
        try:
            if not cells:
                data = b""  # a blank line, which is counted
            elif len(cells) == len(header):
                pairs = zip(header, cells, strict=True)
                data = orjson.dumps({name: cell for name, cell in pairs if cell != ""})
            else:
                data = orjson.dumps(cells)
        except (TypeError, UnicodeEncodeError):
            data = "".join(held).removesuffix("\n").removesuffix("\r").encode("utf-8", "surrogateescape")
        held.clear()
        yield data, -1


def reject_blocks(chunks: Iterable[bytes], source: int, path: str, target: int = BLOCK) -> Iterator[Block]:
    """Repaired rows from `rejects/*.jsonl`: what `raw` holds now, under the name of the file that it came from.

    Raises:
        UnreadableInput: a line is not a reject.
        UsageError: it is one of another command than `convert`, without its text.
    """
    for block in line_blocks(chunks, source, path, target):
        pieces: list[bytes] = []
        spans: list[Span] = []
        origins: list[tuple[str, int]] = []
        size = 0
        for number, line in enumerate(block.payload.split(b"\n"), start=block.first):
            if not line.strip():
                continue
            try:
                reject = orjson.loads(line)
                origin = (str(reject["source"]), int(reject.get("line") or reject["row"]))
                if "dk_id" in reject and reject.keys().isdisjoint(("raw", "raw_base64")):
                    raise UsageError(
                        f"{path}:{number}: a reject without raw text; only those of `datakit convert` can be repaired",
                        "Its row lies under the same dk_id in the shards that were read.",
                    )
                raw = reject["raw"].encode() if "raw" in reject else base64.b64decode(reject["raw_base64"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                message = f"{path}:{number}: not a reject as datakit writes them: {error!r}"
                raise UnreadableInput(message, "Each line needs source, row or line, and raw.") from None
            spans.append((size, size + len(raw), number, -1))
            pieces.append(raw)
            origins.append(origin)
            size += len(raw)
        yield Block(source, block.first, block.offset, block.size, b"".join(pieces), spans, origins=origins)
