"""How values of strangers appear in our sentences: short, quoted, without control characters."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

MOST_SHOWN = 80

_UNWANTED = frozenset({"Cc", "Cs", "Zl", "Zp"})


def shown(value: Any) -> str:
    """`value` as JSON on one line, control characters escaped, cut after 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    text = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"


def has_control(text: str) -> bool:
    """Whether `text` holds a control character, a line or paragraph separator or a lone surrogate."""
    return not text.isprintable() and any(unicodedata.category(char) in _UNWANTED for char in text)
