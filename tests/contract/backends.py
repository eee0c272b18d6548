"""The back ends that the store's contract suite runs against. A new one needs one more entry in BACKENDS."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from msm.kit.clock import Clock, ManualClock
from msm.store.base import Store
from msm.store.sqlite import MEMORY, SqliteStore


class Backend(Protocol):
    """A place where one store lives, empty at first."""

    durable: bool

    async def open(self, *, quota_bytes: int | None = None) -> Store:
        """Open the store at this place; again after a close, if it is durable."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """Let the leases of the open store grow older."""
        ...

    async def shift_wall_clock(self, seconds: float) -> None:
        """Set the machine's wall clock, as the store sees it, forward or back."""
        ...

    def another(self) -> Backend:
        """A new, empty place of the same kind."""
        ...


class ShiftedClock(ManualClock):
    """A clock whose wall time can be set without time passing."""

    shift = 0.0

    def wall(self) -> float:
        return super().wall() + self.shift


@dataclass
class SqliteBackend:
    """The embedded store, in memory (directory None) or in a file, on a clock that the test moves."""

    directory: Path | None
    clock: ShiftedClock = field(default_factory=ShiftedClock)
    numbers: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.durable = self.directory is not None
        self.path = MEMORY if self.directory is None else self.directory / f"{next(self.numbers)}.db"

    async def open(self, *, quota_bytes: int | None = None) -> Store:
        clock: Clock = self.clock
        return await SqliteStore.open(self.path, clock, quota_bytes=quota_bytes)

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def shift_wall_clock(self, seconds: float) -> None:
        self.clock.shift += seconds

    def another(self) -> SqliteBackend:
        return SqliteBackend(self.directory, self.clock, self.numbers)


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "sqlite-memory": lambda _: SqliteBackend(None),
    "sqlite-file": SqliteBackend,
}
DURABLE = ("sqlite-file",)
