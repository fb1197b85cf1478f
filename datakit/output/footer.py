"""Footers of Parquet files, so that row groups which were encoded apart become one file.

Every worker encodes what it made, as a small Parquet file in memory; a shard is the pages of many, one after the other.
What is left to do is one footer for all, in which every offset says where the pages are now. The shard has the very
bytes that pyarrow would have written, had one writer been given all batches.

A footer is a tree in Thrift's compact protocol. It is read without knowing what most of it means: only the fields below
are touched, by their numbers in parquet.thrift.

Sources: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md and
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, _, STRUCT = range(1, 13)
WIDTHS: Final = {TRUE: 1, FALSE: 1, BYTE: 1, DOUBLE: 8}

Struct = dict[int, tuple[int, Any]]
"""Number of a field -> its type and value, in the order of the file."""

# of FileMetaData
SCHEMA, ROWS, GROUPS = 2, 3, 4
# of RowGroup
COLUMNS, GROUP_ROWS, GROUP_OFFSET = 1, 3, 5
# of ColumnChunk, and of the ColumnMetaData in it
CHUNK_OFFSETS: Final = (2, 4, 6)
META: Final = 3
META_OFFSETS: Final = (9, 10, 11, 14)


def merge(footers: Iterable[tuple[int, bytes]]) -> bytes:
    """One footer for row groups that stand one after the other in a file.

    Args:
        footers: of files with one schema, each with the bytes by which its pages have moved; at least one.

    Raises:
        ValueError: there is none, or one has another schema.
    """
    whole: Struct = {}
    groups: list[Struct] = []
    for moved, data in footers:
        own = _Reader(data).struct()
        _, (_, its_groups) = own[GROUPS]
        for group in its_groups:
            _move(group, moved)
            groups.append(group)
        if not whole:
            whole = own
        elif own[SCHEMA] != whole[SCHEMA]:
            raise ValueError("a row group of another schema")
    if not whole:
        raise ValueError("a file without a row group")
    whole[ROWS] = (I64, sum(group[GROUP_ROWS][1] for group in groups))
    whole[GROUPS] = (LIST, (STRUCT, groups))
    out = bytearray()
    _write_struct(out, whole)
    return bytes(out)


def _move(group: Struct, moved: int) -> None:
    _, (_, chunks) = group[COLUMNS]
    _shift(group, (GROUP_OFFSET,), moved)
    for chunk in chunks:
        _shift(chunk, CHUNK_OFFSETS, moved)
        _shift(chunk[META][1], META_OFFSETS, moved)


def _shift(struct: Struct, numbers: Iterable[int], moved: int) -> None:
    for number in numbers:
        kind, value = struct.get(number, (I64, 0))
        if value:  # 0 says that it is not known
            struct[number] = (kind, value + moved)


# ---------------------------------------------------------------- the compact protocol


class _Reader:
    """Reads values one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def zigzag(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def struct(self) -> Struct:
        made: Struct = {}
        number = 0
        while head := self.byte():
            kind = head & 0x0F
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            made[number] = (kind, kind == TRUE if kind in (TRUE, FALSE) else self.value(kind))
        return made

    def value(self, kind: int) -> Any:
        if kind in (I16, I32, I64):
            return self.zigzag()
        if kind == STRUCT:
            return self.struct()
        if kind in (LIST, SET):
            head = self.byte()
            size = head >> 4 if head >> 4 < 15 else self.varint()
            return head & 0x0F, [self.value(head & 0x0F) for _ in range(size)]
        size = self.varint() if kind == BINARY else WIDTHS[kind]
        self.at += size
        return self.data[self.at - size : self.at]


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_zigzag(out: bytearray, value: int) -> None:
    _write_varint(out, value << 1 if value >= 0 else -value * 2 - 1)


def _write_struct(out: bytearray, struct: Struct) -> None:
    before = 0
    for number, (kind, value) in struct.items():
        kind = (TRUE if value else FALSE) if kind in (TRUE, FALSE) else kind
        if 0 < number - before < 16:
            out.append(number - before << 4 | kind)
        else:
            out.append(kind)
            _write_zigzag(out, number)
        if kind not in (TRUE, FALSE):
            _write_value(out, kind, value)
        before = number
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in (I16, I32, I64):
        _write_zigzag(out, value)
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind in (LIST, SET):
        element, values = value
        out.append(min(len(values), 15) << 4 | element)
        if len(values) >= 15:
            _write_varint(out, len(values))
        for one in values:
            _write_value(out, element, one)
    else:
        if kind == BINARY:
            _write_varint(out, len(value))
        out += value
