"""Records as bytes: one byte that says how, then JSON, deflated when that is worth while."""

from __future__ import annotations

import zlib
from typing import Any, Generic, TypeVar

import msgspec

from msm.kit.errors import InvalidInput
from msm.store.errors import Damaged

T = TypeVar("T")

PLAIN, DEFLATED = b"j", b"z"
DEFLATE_FROM = 1024  # bytes; below it a record hardly shrinks
MOST_BYTES = 64 * 1024 * 1024  # of one record, inflated

_encoder = msgspec.json.Encoder()


class Codec(Generic[T]):
    """Writes and reads records of one type."""

    def __init__(self, kind: Any) -> None:
        """`kind` is the record's type, as msgspec takes it."""
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)

    def encode(self, record: T) -> bytes:
        """Raises InvalidInput for text that is not valid Unicode."""
        try:
            text = _encoder.encode(record)
        except UnicodeEncodeError as failure:
            raise InvalidInput("the object holds text that is not valid Unicode") from failure
        if len(text) <= DEFLATE_FROM:
            return PLAIN + text
        return DEFLATED + zlib.compress(text, 1)

    def decode(self, data: bytes) -> T:
        """Raises Damaged for anything that `encode` of this type did not make."""
        try:
            return self._decoder.decode(_inflated(data))
        except (msgspec.MsgspecError, zlib.error, ValueError) as failure:
            raise Damaged(f"a stored record cannot be read: {failure}") from failure


def _inflated(data: bytes) -> bytes | memoryview:
    how = data[:1]
    if how == PLAIN:
        return memoryview(data)[1:]
    if how != DEFLATED:
        raise ValueError(f"its first byte {how!r} is not known")
    inflate = zlib.decompressobj()
    text = inflate.decompress(memoryview(data)[1:], MOST_BYTES)
    if not inflate.eof:
        raise ValueError("it is cut off or too large")
    return text
