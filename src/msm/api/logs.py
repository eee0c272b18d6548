"""Reading log files that others write: their last lines, and what comes after, over rotation and truncation."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 4 * 1024 * 1024  # looked at for the last lines, and read at a time when following


@dataclass(frozen=True, slots=True)
class Tail:
    """Text read so far: where the next reading begins, and in which file (a rotated log is another file)."""

    path: Path
    inode: int
    offset: int
    text: bytes


async def read_tail(path: Path, lines: int, wanted: bytes = b"") -> Tail:
    """The last `lines` lines that hold `wanted`; nothing when the file is not there yet."""
    return await asyncio.to_thread(_tail, path, lines, wanted)


async def read_more(tail: Tail, wanted: bytes = b"") -> Tail:
    """The whole lines that came after `tail`."""
    return await asyncio.to_thread(_more, tail, wanted)


def _tail(path: Path, lines: int, wanted: bytes) -> Tail:
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            begin = max(0, state.st_size - MOST_BYTES)
            file.seek(begin)
            content = file.read(state.st_size - begin)
    except FileNotFoundError:
        return Tail(path, 0, 0, b"")
    if begin:
        content = content[content.find(b"\n") + 1 :]
    kept = [line for line in content.splitlines(keepends=True) if wanted in line]
    return Tail(path, state.st_ino, state.st_size, b"".join(kept[-lines:] if lines else []))


def _more(tail: Tail, wanted: bytes) -> Tail:
    try:
        with tail.path.open("rb") as file:
            state = os.fstat(file.fileno())
            fresh = state.st_ino != tail.inode or state.st_size < tail.offset
            offset = 0 if fresh else tail.offset
            file.seek(offset)
            content = file.read(MOST_BYTES)
    except FileNotFoundError:
        return Tail(tail.path, 0, 0, b"")
    end = content.rfind(b"\n") + 1 if len(content) < MOST_BYTES else len(content)
    kept = b"".join(line for line in content[:end].splitlines(keepends=True) if wanted in line)
    return Tail(tail.path, state.st_ino, offset + end, kept)
