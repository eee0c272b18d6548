"""Reads a worker's black box: which versions it was executing when it ended."""

from __future__ import annotations

from pathlib import Path

SLOTS = 64
SLOT_BYTES = 256


def executing(box: Path) -> tuple[str, ...]:
    """The texts of the used slots; empty when there is no box."""
    try:
        content = box.read_bytes()[: SLOTS * SLOT_BYTES]
    except FileNotFoundError:
        return ()
    slots = (content[at : at + SLOT_BYTES] for at in range(0, len(content), SLOT_BYTES))
    return tuple(slot.split(b"\0", 1)[0].decode(errors="replace") for slot in slots if slot[:1] != b"\0")
