"""Text for a terminal: what a server said without control sequences, sizes and times for people. Pure."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]"
)


def clean(text: str) -> str:
    """`text` without terminal control: no escape sequences, no control characters but line breaks and tabs, nothing
    that reorders what is around it."""
    bare = _SEQUENCE.sub("", text)
    if bare.isprintable():
        return bare
    return "".join(char for char in bare if char in "\n\t" or unicodedata.category(char) not in _UNWANTED)


_UNWANTED = frozenset({"Cc", "Cs", "Cf"})


def one_line(text: str) -> str:
    """`clean`, on one line."""
    return " ".join(clean(text).split())


def size(count: int | None) -> str:
    """Bytes for people: "3.2 MiB"; nothing for None."""
    if count is None:
        return ""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """A time span for people: "3.2 ms", "45 s", "2 h 5 min"; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
