"""Is a UBJSON document whole? XGBoost's own reader runs over the end of one that was cut off, and crashes.

Walks the document without building it, by the rules of UBJSON (ubjson.org, draft 12), with the typed arrays that
XGBoost writes; numbers are big-endian.
"""

from __future__ import annotations

from typing import Final

_SIZES: Final = {
    b"Z": 0, b"T": 0, b"F": 0, b"N": 0, b"i": 1, b"U": 1, b"C": 1, b"I": 2, b"l": 4, b"d": 4, b"L": 8, b"D": 8,
}  # fmt: skip
_MAX_DEPTH: Final = 200


class _Broken(Exception):
    """The document breaks a rule or ends too early."""


def is_whole(data: bytes) -> bool:
    """Whether `data` is one complete UBJSON object, and nothing after it."""
    try:
        return data[:1] == b"{" and _walk(data) == len(data)
    except _Broken:
        return False


def _walk(data: bytes) -> int:
    """The position after the value that begins at 0."""
    position = 0
    inside: list[bytes | int] = []  # of each container around the position: the mark that ends it, or values to come
    while True:
        end = inside[-1] if inside else None
        if end == 0 or (isinstance(end, bytes) and data[position : position + 1] == end):
            inside.pop()
            position += isinstance(end, bytes)
        else:
            if isinstance(end, int):
                inside[-1] = end - 1
            elif end == b"}":
                position = _skip_text(data, position)
            kind = data[position : position + 1]
            if kind in (b"{", b"["):
                position, found = _enter(data, position + 1, kind)
                inside += found
            else:
                position = _skip_plain(data, position + 1, kind)
        if len(inside) > _MAX_DEPTH:
            raise _Broken
        if not inside:
            return position


def _enter(data: bytes, position: int, kind: bytes) -> tuple[int, list[bytes | int]]:
    """After the start of a container: past all of a typed array, else inside, with what ends it."""
    mark = data[position : position + 1]
    if mark == b"$" and kind == b"[":
        item, hashed = data[position + 1 : position + 2], data[position + 2 : position + 3]
        if hashed != b"#" or item not in _SIZES:
            raise _Broken
        count, position = _integer(data, position + 3)
        position += count * _SIZES[item]
        if position > len(data):
            raise _Broken
        return position, []
    if mark == b"#" and kind == b"[":
        count, position = _integer(data, position + 1)
        return position, [count]
    if mark in (b"$", b"#"):
        raise _Broken  # allowed by UBJSON, not written by XGBoost
    return position, [b"}" if kind == b"{" else b"]"]


def _skip_plain(data: bytes, position: int, kind: bytes) -> int:
    if kind == b"S":
        return _skip_text(data, position)
    if kind not in _SIZES or position + _SIZES[kind] > len(data):
        raise _Broken
    return position + _SIZES[kind]


def _skip_text(data: bytes, position: int) -> int:
    size, position = _integer(data, position)
    if position + size > len(data):
        raise _Broken
    return position + size


def _integer(data: bytes, position: int) -> tuple[int, int]:
    kind = data[position : position + 1]
    if kind not in (b"i", b"U", b"I", b"l", b"L"):
        raise _Broken
    end = position + 1 + _SIZES[kind]
    value = int.from_bytes(data[position + 1 : end], "big", signed=kind != b"U")
    if end > len(data) or value < 0:
        raise _Broken
    return value, end
