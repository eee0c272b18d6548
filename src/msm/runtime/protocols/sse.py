"""Server-sent events (HTML Living Standard, section 9.2): one event as bytes. Pure."""

from __future__ import annotations

import re
from typing import Final

CONTENT_TYPE: Final = b"text/event-stream"
_LINE_ENDS: Final = re.compile(rb"\r\n|\n|\r")


def event(data: bytes, name: str = "") -> bytes:
    """An event with `data`, of the default type unless it has a `name`, which must hold no line end."""
    kind = b"event: %b\n" % name.encode() if name else b""
    if b"\n" not in data and b"\r" not in data:  # JSON never has any
        return b"%bdata: %b\n\n" % (kind, data)
    return kind + b"".join(b"data: %b\n" % line for line in _LINE_ENDS.split(data)) + b"\n"
