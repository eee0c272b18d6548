"""How values of strangers appear in our sentences: short, quoted, without control characters."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

MOST_SHOWN = 80


def shown(value: Any) -> str:
    """`value` as JSON on one line, control characters escaped, cut after 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    text = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"


def has_control(text: str) -> bool:
    """Whether `text` holds a control character, a line separator or a lone surrogate."""
    return any(not char.isprintable() and not char.isspace() for char in text) or any(
        char in text for char in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"
    )


def nearest(wanted: str, known: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """The names in `known` most like `wanted`, best first; a difference in case alone is always near."""
    names = sorted(set(known))
    folded = [name for name in names if name.casefold() == wanted.casefold() and name != wanted]
    close = difflib.get_close_matches(wanted[:200], names, n=most, cutoff=0.6)
    return tuple(dict.fromkeys([*folded, *close]))[:most]


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """ "; did you mean …?" for the nearest name, or nothing."""
    best = nearest(wanted, known, most=1)
    return f"; did you mean {shown(best[0])}?" if best else ""
