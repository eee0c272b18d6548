"""What the generators of artifacts share: how they are registered, and the mark that none of them may leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

MARK = "it-ran"
"""The folder that the artifacts' code would make beside them, if it ran."""

Maker = Callable[[Path], Path]


def registered_in(makers: dict[str, Maker]) -> Callable[[Maker], Maker]:
    """A decorator for generators. Each gets an empty folder and returns the artifact."""

    def register(function: Maker) -> Maker:
        makers[function.__name__] = function
        return function

    return register


def written(path: Path, data: bytes) -> Path:
    """A file with that content."""
    path.write_bytes(data)
    return path
