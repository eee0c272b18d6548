"""The table of copies on this node, with the sums that residency decisions need, kept as it changes.

Holds and counts; decides nothing. Every entry is charged against the node's memory until it is removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from msm.planning.picture import CopyView
from msm.resources.observed import CopyStatus
from msm.resources.serving import VersionKey


@dataclass(slots=True)
class Sums:
    """What one worker holds: bytes charged, requests in flight, loads in progress (and those nobody waits for)."""

    memory_bytes: int = 0
    in_flight: int = 0
    loads: int = 0
    background: int = 0
    copies: int = 0


@dataclass(slots=True)
class Details:
    """What people want to know about a copy and decisions do not need. `adopted_load` runs on behalf of nobody here."""

    digest: str
    reason: str
    background: bool = False
    adopted_load: bool = False
    requests: int = 0
    failures: int = 0
    execution: str | None = None


class Copies:
    """Copies by version and by worker."""

    def __init__(self) -> None:
        self._by_key: dict[VersionKey, tuple[CopyView, ...]] = {}
        self._details: dict[tuple[VersionKey, str], Details] = {}
        self._sums: dict[str, Sums] = {}
        self._on: dict[str, dict[VersionKey, None]] = {}
        self.by_key: Mapping[VersionKey, tuple[CopyView, ...]] = MappingProxyType(self._by_key)
        self.used_bytes = 0

    def of(self, key: VersionKey) -> tuple[CopyView, ...]:
        return self._by_key.get(key, ())

    def get(self, key: VersionKey, worker: str) -> CopyView | None:
        return next((copy for copy in self._by_key.get(key, ()) if copy.worker == worker), None)

    def details(self, copy: CopyView) -> Details:
        """Raises KeyError for a copy that was removed."""
        return self._details[copy.key, copy.worker]

    def holds(self, key: VersionKey, worker: str, details: Details) -> bool:
        """Whether that very copy is still there, not another of the same version made later."""
        return self._details.get((key, worker)) is details

    def ready(self, key: VersionKey) -> list[CopyView]:
        return [copy for copy in self._by_key.get(key, ()) if copy.state == "Ready"]

    def on(self, worker: str) -> list[CopyView]:
        """Every copy in one worker."""
        found = (self.get(key, worker) for key in self._on.get(worker, ()))
        return [copy for copy in found if copy is not None]

    def all(self) -> Iterator[CopyView]:
        for copies in self._by_key.values():
            yield from copies

    def sums(self, worker: str) -> Sums:
        return self._sums.setdefault(worker, Sums())

    def add(self, copy: CopyView, details: Details) -> None:
        """Charge a new copy. There must be none of that version in that worker."""
        self._by_key[copy.key] = (*self._by_key.get(copy.key, ()), copy)
        self._details[copy.key, copy.worker] = details
        self._on.setdefault(copy.worker, {})[copy.key] = None
        self._count(copy, details, 1)

    def change(self, key: VersionKey, worker: str, **fields: object) -> CopyView:
        """Change fields of an entry that exists; returns it as it is now."""
        before = next(copy for copy in self._by_key[key] if copy.worker == worker)
        fresh = replace(before, **fields)  # type: ignore[arg-type]  # the fields' types are the dataclass's own
        self._by_key[key] = tuple(fresh if copy is before else copy for copy in self._by_key[key])
        details = self._details[key, worker]
        self._count(before, details, -1)
        self._count(fresh, details, 1)
        return fresh

    def remove(self, key: VersionKey, worker: str) -> CopyView | None:
        """Give back what a copy was charged; None when there is none."""
        copy = self.get(key, worker)
        if copy is None:
            return None
        rest = tuple(held for held in self._by_key[key] if held.worker != worker)
        if rest:
            self._by_key[key] = rest
        else:
            del self._by_key[key]
        self._on[worker].pop(key, None)
        self._count(copy, self._details.pop((key, worker)), -1)
        return copy

    def status(self, copy: CopyView, now: float) -> CopyStatus:
        """A copy as people see it."""
        details = self.details(copy)
        idle_s = now - copy.last_used
        return CopyStatus(
            version=str(copy.key),
            worker=copy.worker,
            state=copy.state,
            memory_bytes=copy.memory_bytes,
            in_flight=copy.in_flight,
            requests=details.requests,
            failures=details.failures,
            idle_seconds=round(idle_s, 3) if copy.state == "Ready" and idle_s < float("inf") else None,
            load_seconds=copy.load_seconds if copy.state == "Ready" else None,
            execution=details.execution if copy.state == "Ready" else None,
            reason=details.reason,
        )

    def _count(self, copy: CopyView, details: Details, sign: int) -> None:
        sums = self.sums(copy.worker)
        sums.memory_bytes += sign * copy.memory_bytes
        sums.in_flight += sign * copy.in_flight
        sums.copies += sign
        self.used_bytes += sign * copy.memory_bytes
        if copy.state == "Loading":
            sums.loads += sign
            sums.background += sign * details.background
