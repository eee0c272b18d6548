"""Who is to blame when this process dies: a small mapped file that names what runs right now.

64 slots of 256 bytes, each either zero or a NUL-padded UTF-8 target ("namespace/model/version"). The file is mapped
shared, so its last state survives the process; marking a slot is one copy within memory (below 1 µs), no system call.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

SLOTS: Final = 64
SLOT_BYTES: Final = 256
_ZERO: Final = bytes(SLOT_BYTES)


class BlackBox:
    """Writes the file. Any thread may mark; a list's pop and append are atomic."""

    def __init__(self, path: Path) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, SLOTS * SLOT_BYTES)
            self._memory = mmap.mmap(handle, SLOTS * SLOT_BYTES)
        finally:
            os.close(handle)
        self._memory[:] = bytes(SLOTS * SLOT_BYTES)
        self._free = list(range(SLOTS - 1, -1, -1))

    def enter_target(self, target: str) -> int | None:
        """`enter` for a target whose label is not at hand."""
        return self.enter(label_of(target))

    def enter(self, label: bytes) -> int | None:
        """Name `label` (see `label_of`) as running; returns the slot for `leave`, None when all are taken."""
        try:
            slot = self._free.pop()
        except IndexError:
            return None
        start = slot * SLOT_BYTES
        self._memory[start : start + SLOT_BYTES] = label
        return slot

    def leave(self, slot: int | None) -> None:
        """It runs no longer."""
        if slot is not None:
            start = slot * SLOT_BYTES
            self._memory[start : start + SLOT_BYTES] = _ZERO
            self._free.append(slot)


def label_of(target: str) -> bytes:
    """The content of a slot for `target`, which may have at most 255 bytes."""
    return target.encode()[: SLOT_BYTES - 1].ljust(SLOT_BYTES, b"\0")


def read(path: Path) -> list[str]:
    """The targets named in a black box, in the order of the slots."""
    data = path.read_bytes()[: SLOTS * SLOT_BYTES]
    slots = (data[start : start + SLOT_BYTES] for start in range(0, len(data), SLOT_BYTES))
    return [name.decode("utf-8", "replace") for slot in slots if (name := slot.rstrip(b"\0"))]
