"""Bodies of HTTP/1.1 requests that come in pieces: by length, or in chunks. Pure; each byte is copied once more."""

from __future__ import annotations

from typing import Final, Protocol

from msm.kit.errors import InputTooLarge, InvalidInput

_HEX: Final = b"0123456789abcdefABCDEF"
_MAX_LINE: Final = 1024
_MAX_TRAILERS: Final = 16 * 1024
_FREE_CHUNKS: Final = 10_000
_MIN_MEAN_CHUNK: Final = 16


class Body(Protocol):
    """Collects the pieces of a body."""

    def feed(self, data: bytes) -> int | None:
        """Take `data`. None: more is needed; else how many bytes of `data` belonged to the body, which is complete."""
        ...

    def value(self) -> bytes:
        """The complete body."""
        ...

    def take(self) -> bytes:
        """What came since the last call, for a body that is read while it comes; it is not kept."""
        ...


class SizedBody:
    """A body of known size, which the caller has checked against the limit."""

    __slots__ = ("_left", "_parts", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = size
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> int | None:
        left = self._left
        if len(data) < left:
            self._parts.append(data)
            self._left = left - len(data)
            return None
        self._parts.append(data if len(data) == left else data[:left])
        return left

    def value(self) -> bytes:
        return b"".join(self._parts)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def single_chunk(data: bytes, start: int, limit: int) -> bytes | None:
    """The body when `data` holds, from `start` to its end, just one chunk and the last one: the usual case.

    None in any other case, also for broken framing: then `ChunkedBody` reads it with all care.
    """
    line_end = data.find(b"\r\n", start, start + 16)
    digits = data[start:line_end]
    if line_end < 0 or not digits or digits.strip(_HEX):
        return None
    size = int(digits, 16)
    first = line_end + 2
    if not size or size > limit or data[first + size :] != b"\r\n0\r\n\r\n":
        return None
    return data[first : first + size]


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1). Extensions and trailers are dropped.

    Raises InputTooLarge when more than `limit` bytes came, InvalidInput for broken framing and for a body cut into
    so many tiny chunks that reading it is an attack rather than a request. Both bound what was not taken yet.
    """

    __slots__ = ("_chunks", "_left", "_limit", "_line", "_parts", "_size", "_state", "_trailers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = self._chunks = self._trailers = 0
        self._state = "size"  # size → data → end → size …; size 0 → trailer
        self._left = 0
        self._line = b""

    def feed(self, data: bytes) -> int | None:
        position, end = 0, len(data)
        while position < end:
            if self._state == "data":
                piece = data[position : position + self._left]
                self._parts.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "end"
                continue
            line_end = data.find(b"\n", position)
            if line_end < 0:
                self._keep(data[position:])
                return None
            line = self._line + data[position:line_end]
            self._line = b""
            position = line_end + 1
            if len(line) > _MAX_LINE or line[-1:] != b"\r":
                raise InvalidInput("a chunk of the body has a broken line", reason="bad_framing")
            if self._took_last(line[:-1]):
                return position
        return None

    def _keep(self, piece: bytes) -> None:
        self._line += piece
        if len(self._line) > _MAX_LINE:
            raise InvalidInput("a chunk of the body has a broken line", reason="bad_framing")

    def _took_last(self, line: bytes) -> bool:
        """Act on a line that is not data; true when it was the last one of the body."""
        if self._state == "trailer":
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS:
                raise InputTooLarge(f"the trailers are over {_MAX_TRAILERS} bytes")
            return not line
        if self._state == "end":
            if line:
                raise InvalidInput("a chunk of the body is longer than its size says", reason="bad_framing")
            self._state = "size"
            return False
        self._start_chunk(line.partition(b";")[0].rstrip(b" \t"))
        return False

    def _start_chunk(self, digits: bytes) -> None:
        if not digits or len(digits) > 12 or digits.strip(_HEX):
            raise InvalidInput("the size of a chunk is not a hexadecimal number", reason="bad_framing")
        size = self._left = int(digits, 16)
        self._state = "data" if size else "trailer"
        self._size += size
        self._chunks += 1
        if self._size > self._limit:
            raise InputTooLarge(f"the body has more than the limit of {self._limit} bytes")
        if self._chunks > _FREE_CHUNKS and self._size < self._chunks * _MIN_MEAN_CHUNK:
            raise InvalidInput("the body comes in too many tiny chunks", reason="too_many_chunks")

    def value(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def take(self) -> bytes:
        taken = self.value()
        self._parts.clear()
        self._size, self._chunks = self._left, 0  # what was taken no longer counts against the limits
        return taken
