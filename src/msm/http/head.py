"""The head of an HTTP/1.1 request: its line, and the few headers that mean something to its server. Pure.

The peer is an Envoy that sends a dozen headers which mean nothing here, so the head is not taken apart line by line:
one pass of a regular expression finds those that do, and whatever could be read in two ways.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from msm.kit.errors import InvalidInput


def headers_known(*names: str) -> re.Pattern[bytes]:
    """What `parse` looks for: the headers that HTTP itself needs, and `names`."""
    more = "".join(f"|{re.escape(name)}" for name in names).encode()
    return re.compile(
        rb"\n(?:(content-(?:length|type|encoding)|transfer-encoding|connection|expect" + more + rb")"
        rb"([ \t]*):([^\r]*)|([ \t]))",
        re.IGNORECASE,
    )


FRAMING: Final = headers_known()
_VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.0")


class Head(msgspec.Struct, frozen=True, gc=False):
    """A request's method, path, and known headers by lower-case name. `last`: the connection is not to be kept."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    last: bool


def parse(head: bytes, known: re.Pattern[bytes] = FRAMING) -> Head:
    """The head in `head`, which ends with the line end of its last line.

    Raises InvalidInput for what RFC 9112 lets a server refuse: a line that is not HTTP/1.1's, characters that end or
    fold a line, a space before a colon, and a known header that came twice.
    """
    line = head[: head.find(b"\r\n")].split(b" ")
    if len(line) != 3 or line[2] not in _VERSIONS or line[1][:1] != b"/" or not line[0].isalpha():
        raise InvalidInput("the request line is not that of HTTP/1.1", reason="bad_request_line")
    if len(head) - len(head.translate(None, b"\0\r\n")) != 2 * head.count(b"\r\n"):
        raise InvalidInput("a header holds a character that is not allowed there", reason="bad_header")
    headers: dict[bytes, bytes] = {}
    for name, space, value, fold in known.findall(head):
        if space or fold:
            raise InvalidInput("a header is folded or has a space before its colon", reason="bad_header")
        key = name.lower()
        if key in headers:
            raise InvalidInput(f"header {key.decode()} came twice", reason="duplicate_header")
        headers[key] = value.strip(b" \t")
    last = line[2] == b"HTTP/1.0" or headers.get(b"connection", b"").lower() == b"close"
    return Head(line[0], line[1], headers, last)
