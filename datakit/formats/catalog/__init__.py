"""The catalogue: every source format as data, by what it becomes."""

from __future__ import annotations

from typing import Final

from datakit.formats.catalog.conversations import CONVERSATIONS
from datakit.formats.catalog.preferences import PREFERENCES
from datakit.formats.catalog.prompts import PROMPTS
from datakit.formats.catalog.texts import TEXTS
from datakit.formats.declare import Format

CATALOG: Final[tuple[Format, ...]] = (*TEXTS, *CONVERSATIONS, *PREFERENCES, *PROMPTS)
