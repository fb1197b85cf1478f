"""Formats: the registry of declarations, and what reads rows by them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

from datakit.errors import UsageError
from datakit.formats.catalog import CATALOG
from datakit.formats.declare import Format

FORMATS: Final[Mapping[str, Format]] = {format.name: format for format in CATALOG}
if len(FORMATS) != len(CATALOG):
    raise ValueError("two formats have one name")


def find(name: str) -> Format:
    """A format by its name.

    Raises:
        UsageError: there is none; the message lists close names.
    """
    if name in FORMATS:
        return FORMATS[name]
    close = difflib.get_close_matches(name, FORMATS, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(f"no format named {name!r}", hint + "`datakit formats` lists all.")
