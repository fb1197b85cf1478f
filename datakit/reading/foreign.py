"""Values that Arrow has and JSON lacks, as JSON that loses nothing: bytes, decimals, times, NaN and infinity.

    bytes       {"$base64": "..."}
    decimal     "12.50"
    time, date  ISO 8601 with all digits of the column: "2024-01-01T00:00:00.000000001", "PT1.5S" for a duration
    NaN         "NaN", "Infinity", "-Infinity"

Columns that hold none, which is nearly all, pay for a look at their type, and floats for one pass in Arrow.
"""

from __future__ import annotations

import math
from base64 import b64encode
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

_DIGITS: Final = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_BINARY: Final = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)


def holds_foreign(column: Any) -> bool:
    """Whether some value in a column, at any depth, may be one that JSON lacks."""
    type_ = column.type
    if isinstance(column, pa.ExtensionArray):
        return holds_foreign(column.storage)
    if isinstance(column, pa.DictionaryArray):
        return holds_foreign(column.dictionary)
    if pa.types.is_struct(type_):
        return any(holds_foreign(inner) for inner in column.flatten())
    if pa.types.is_map(type_):
        return holds_foreign(column.keys) or holds_foreign(column.items)
    if pa.types.is_nested(type_):
        return not hasattr(column, "flatten") or holds_foreign(column.flatten())
    if pa.types.is_floating(type_):
        import pyarrow.compute as pc  # 20 ms that workers on texts do not need

        return pc.all(pc.is_finite(column)).as_py() is False
    return any(of_type(type_) for of_type in (*_BINARY, pa.types.is_decimal, pa.types.is_temporal))


def as_json(value: Any, texts: set[str], odd: set[str]) -> Any:
    """A value as JSON has it.

    Args:
        texts: gets the types of values that have become texts.
        odd: gets the numbers that are not finite.

    Raises:
        ArrowInvalid: a type that has no such form.
    """
    type_ = value.type
    if not value.is_valid:
        return None
    if isinstance(value, pa.StructScalar):
        return {name: as_json(inner, texts, odd) for name, inner in value.items()}
    if isinstance(value, pa.ListScalar):
        inner: Any = value.values
        made = [as_json(item, texts, odd) for item in inner]
        return [list(pair.values()) for pair in made] if isinstance(value, pa.MapScalar) else made
    if isinstance(value, pa.DictionaryScalar):
        return as_json(value.value, texts, odd)
    if pa.types.is_floating(type_):
        number = float(value.as_py())
        if math.isfinite(number):
            return number
        odd.add(_name_of(number))
        return _name_of(number)
    if any(of_type(type_) for of_type in _BINARY):
        texts.add(str(type_))
        return {"$base64": b64encode(value.as_py()).decode()}
    if pa.types.is_decimal(type_) or isinstance(type_, pa.UuidType):
        texts.add(str(type_))
        return str(value.as_py())
    if pa.types.is_temporal(type_):
        texts.add(str(type_))
        return _time(value)
    plain = value.as_py()
    if plain is not None and type(plain) not in (str, int, bool):
        raise pa.ArrowInvalid(f"a value of type {type_}, which has no form in JSON")
    return plain


def _name_of(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _time(value: Any) -> str:
    """A date, time, moment or duration in ISO 8601, with the digits of its unit."""
    type_ = value.type
    if pa.types.is_interval(type_):
        months, days, nanoseconds = value.as_py()
        return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9):f}S"
    unit: Any = getattr(type_, "unit", "D" if pa.types.is_date32(type_) else "ms")
    if pa.types.is_duration(type_):
        seconds = Decimal(value.value).scaleb(-_DIGITS[unit])
        return f"{'-' if seconds < 0 else ''}PT{abs(seconds):f}S"
    if unit != "ns":
        try:
            return str(value.as_py().isoformat())
        except (ValueError, OverflowError):
            pass  # a year that Python lacks
    import numpy as np

    text = str(np.datetime64(value.value, unit))
    if pa.types.is_time(type_):
        return text.partition("T")[2]
    return f"{text}+00:00" if getattr(type_, "tz", None) else text
