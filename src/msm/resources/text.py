"""How values of strangers appear in our sentences: short, quoted, without control characters."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

MOST_SHOWN = 80

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
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


def child(path: str, key: str) -> str:
    """The path of a field: `$.spec`, or `$.metadata.labels["a.b"]` for a key that is not a plain word."""
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[{shown(key)}]"
