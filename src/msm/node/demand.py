"""Who waits for which version, and what is to be made warm again.

One future for each version that somebody waits for: all who wait share it, so that one load answers them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from msm.kit.errors import MsmError
from msm.planning.picture import NEVER, Demand
from msm.resources.meta import ObjectKey
from msm.resources.serving import VersionKey

Outcome = asyncio.Future[MsmError | None]


@dataclass(slots=True)
class _Wait:
    outcome: Outcome
    count: int = 0


class Demands:
    """The demand beyond what is declared."""

    def __init__(self) -> None:
        self._demands: dict[VersionKey, Demand] = {}
        self._waits: dict[VersionKey, _Wait] = {}
        self._queued: dict[ObjectKey, int] = {}
        self.by_key: Mapping[VersionKey, Demand] = MappingProxyType(self._demands)

    def queued(self, model: ObjectKey) -> int:
        """Requests that wait for any version of a model."""
        return self._queued.get(model, 0)

    def total(self) -> int:
        return sum(self._queued.values())

    def waiting(self) -> list[VersionKey]:
        """Versions that requests wait for."""
        return list(self._waits)

    def enqueue(self, model: ObjectKey, by: int) -> None:
        """Count a request in (+1) or out (-1) of a model's queue."""
        count = self._queued.get(model, 0) + by
        if count:
            self._queued[model] = count
        else:
            self._queued.pop(model, None)

    def join(self, key: VersionKey, now: float) -> Outcome:
        """Begin to wait: the future's result is None once the version is ready, or the error that it cannot be had.

        The caller must not cancel the future (others wait for it too) and calls `leave` when it waits no longer.
        """
        wait = self._waits.get(key)
        if wait is None:
            wait = self._waits[key] = _Wait(asyncio.get_running_loop().create_future())
        wait.count += 1
        known = self._demands.get(key, Demand())
        since = known.since if known.waiting else now
        self._demands[key] = replace(known, waiting=wait.count, since=since)
        return wait.outcome

    def leave(self, key: VersionKey, outcome: Outcome) -> None:
        """Wait no longer, whatever the outcome."""
        wait = self._waits.get(key)
        if wait is None or wait.outcome is not outcome:
            return  # it was settled: nobody waits any more
        wait.count -= 1
        if wait.count:
            self._demands[key] = replace(self._demands[key], waiting=wait.count)
        else:
            del self._waits[key]
            self._without_waiters(key)

    def settle(self, key: VersionKey, error: MsmError | None = None) -> int:
        """Tell all who wait: ready, or not to be had. Returns how many they were."""
        wait = self._waits.pop(key, None)
        if wait is None:
            return 0
        self._without_waiters(key)
        wait.outcome.set_result(error)
        return wait.count

    def keep(self, key: VersionKey, copies: int, until: float) -> None:
        """Want `copies` until that moment: they were in use when their worker died."""
        known = self._demands.get(key, Demand())
        self._demands[key] = replace(known, keep=copies, keep_until=until)

    def tidy(self, now: float) -> None:
        """Forget wishes that have run out."""
        for key, demand in list(self._demands.items()):
            if not demand.waiting and demand.keep_until <= now:
                del self._demands[key]

    def _without_waiters(self, key: VersionKey) -> None:
        demand = replace(self._demands[key], waiting=0, since=0.0)
        if demand.keep_until > NEVER:
            self._demands[key] = demand
        else:
            del self._demands[key]
