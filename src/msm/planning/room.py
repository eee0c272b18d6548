"""Memory in a residency plan: what is free, what is coming back, and which copies go to make room. Pure.

Copies go in falling order of idle seconds / max(load seconds, 0.1): least recent use, weighed by the cost of
loading again. The quotient is the inverse of the reload seconds expected per second, when the time since the
last use stands for the time to the next one. Below 0.1 s load times are noise and plain LRU decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from msm.planning.moves import Move, Numbers, Unload, Urgency
from msm.planning.picture import CopyView, Demand, Picture, Wanted
from msm.resources.serving import VersionKey

LOAD_NOISE_S = 0.1
Candidate = tuple[float, VersionKey, str, CopyView]  # what may go, in the order of going
MIB = 1 << 20
DAY_S = 86_400.0


def mib(count: int) -> str:
    """A count of bytes for people."""
    return f"{count / MIB:.1f} MiB"


def idle_for(copy: CopyView, now: float) -> float:
    """Seconds since a copy was used; a day at most, so that a copy never used has a number that JSON can hold."""
    return min(now - copy.last_used, DAY_S)


def copies_wanted(wanted: Wanted, demand: Demand | None, now: float) -> tuple[int, Urgency]:
    """How many copies a version should have, before the number of workers is known, and the strongest reason."""
    if wanted.blocked_until is not None and wanted.blocked_until > now:
        return 0, Urgency.RESTORE
    count, urgency = wanted.minimum, Urgency.MINIMUM
    if demand is not None:
        if demand.keep > count and demand.keep_until > now:
            count, urgency = demand.keep, Urgency.RESTORE
        if demand.waiting:
            count = max(count, 1)
    return min(count, 1 if wanted.isolated else wanted.maximum), urgency


class Room:
    """The memory of one plan.

    Bytes are given out once: `take` gives free ones, `reserve` gives those that are coming back and, if they
    do not suffice, unloads copies. The ranking of all copies is made only when memory is short for the first
    time.
    """

    def __init__(self, picture: Picture, now: float, moves: Sequence[Move]) -> None:
        """`moves` are those of the plan so far; it grows while the plan is made."""
        self._picture = picture
        self._now = now
        self._moves = moves
        self._surveyed = False
        self._coming = 0
        self._candidates: list[Candidate] = []  # a heap, the next to go first
        self.free = picture.capacity_bytes - picture.used_bytes
        self.settled_at: float | None = None  # when the next copy is old enough to make room

    def take(self, memory: int) -> bool:
        """Give `memory` of the free bytes, if there are so many."""
        if memory > self.free:
            return False
        self.free -= memory
        return True

    def reserve(self, memory: int, *, for_key: VersionKey) -> list[Unload] | None:
        """Set `memory` aside from what is coming back and what is free, unloading copies for the rest.

        The unloads that are needed for it, or None when even all candidates would not suffice; then none
        goes.
        """
        self._survey()
        missing = memory - self.free - self._coming
        chosen = self._choose(missing)
        if chosen is None:
            return None
        self._coming += sum(copy.memory_bytes for copy in chosen)
        from_coming = min(self._coming, memory)
        self._coming -= from_coming
        self.free -= memory - from_coming
        return [self._unload(copy, for_key) for copy in chosen]

    def _unload(self, copy: CopyView, for_key: VersionKey) -> Unload:
        idle_s = idle_for(copy, self._now)
        reason = f"it makes room for {for_key}; idle for {idle_s:.0f} s, loads in {copy.load_seconds:.2f} s"
        data: Numbers = {
            "idle_s": round(idle_s, 3),
            "load_seconds": copy.load_seconds,
            "memory_bytes": copy.memory_bytes,
        }
        return Unload(copy.key, copy.worker, reason, data)

    def _survey(self) -> None:
        """Count what is coming back and rank what may go, once per plan."""
        if self._surveyed:
            return
        self._surveyed = True
        leaving = {(move.key, move.worker) for move in self._moves if isinstance(move, Unload)}
        for key, copies in self._picture.copies.items():
            floor = self._floor(key)
            spare = not floor or sum(copy.state == "Ready" for copy in copies) > floor
            for copy in copies:
                if copy.state == "Ready" and (key, copy.worker) not in leaving:
                    if spare and not copy.in_flight and self._settled(copy):
                        worth = (self._now - copy.last_used) / max(copy.load_seconds, LOAD_NOISE_S)
                        self._candidates.append((-worth, key, copy.worker, copy))
                elif copy.state != "Loading":
                    self._coming += copy.memory_bytes
        heapify(self._candidates)

    def _settled(self, copy: CopyView) -> bool:
        """Whether a copy is old enough to make room; notes when the next one will be."""
        limits = self._picture.limits
        settled_at = copy.ready_since + max(limits.stay_loads * copy.load_seconds, limits.stay_s)
        if settled_at <= self._now:
            return True
        self.settled_at = settled_at if self.settled_at is None else min(self.settled_at, settled_at)
        return False

    def _floor(self, key: VersionKey) -> int:
        """Copies of a version that must stay."""
        wanted = self._picture.wanted.get(key)
        if wanted is None:
            return 0
        demand = self._picture.demand.get(key)
        if demand is None and not wanted.minimum:
            return 0
        return copies_wanted(wanted, demand, self._now)[0]

    def _choose(self, missing: int) -> list[CopyView] | None:
        """Copies that give `missing` bytes, in order of going; None, and nothing changed, when they do not suffice."""
        chosen: list[Candidate] = []
        kept: list[Candidate] = []
        going: dict[VersionKey, int] = {}
        while missing > 0 and self._candidates:
            candidate = heappop(self._candidates)
            key, copy = candidate[1], candidate[3]
            if self._spare(key) - going.get(key, 0) <= 0:
                kept.append(candidate)
                continue
            chosen.append(candidate)
            going[key] = going.get(key, 0) + 1
            missing -= copy.memory_bytes
        for candidate in kept if missing <= 0 else [*kept, *chosen]:
            heappush(self._candidates, candidate)
        return [candidate[3] for candidate in chosen] if missing <= 0 else None

    def _spare(self, key: VersionKey) -> int:
        """Ready copies of a version beyond what must stay, without those that this plan unloads already."""
        ready = sum(copy.state == "Ready" for copy in self._picture.copies[key])
        leaving = sum(isinstance(move, Unload) and move.key == key for move in self._moves)
        return ready - leaving - self._floor(key)
