"""The last decisions about each version, for `explain`: what was done and why, what could not be done and why not."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from msm.planning.moves import Cause, Rejection
from msm.resources.observed import Reason
from msm.resources.serving import VersionKey

KEPT_VERSIONS = 10_000
KEPT_REASONS = 8


class Decisions:
    """A bounded memory of reasons by version; the versions decided about longest ago go first."""

    def __init__(self) -> None:
        self._made: OrderedDict[VersionKey, deque[Reason]] = OrderedDict()
        self._rejected: dict[VersionKey, Rejection] = {}

    def made(self, key: VersionKey, about: str, message: str, data: dict[str, Any]) -> None:
        """A move was decided."""
        reasons = self._made.setdefault(key, deque(maxlen=KEPT_REASONS))
        reasons.append(Reason(about=about, message=message, data=data))
        self._made.move_to_end(key)
        if len(self._made) > KEPT_VERSIONS:
            self._made.popitem(last=False)

    def rejected(self, rejection: Rejection) -> bool:
        """A copy could not be had. Whether that is news: the cause differs from the last one."""
        before = self._rejected.pop(rejection.key, None)
        self._rejected[rejection.key] = rejection  # at the end: what was looked at longest ago comes first
        return before is None or before.cause != rejection.cause

    def resolved(self, key: VersionKey) -> None:
        """What was rejected came about, or is not wanted any more."""
        self._rejected.pop(key, None)

    def rejection(self, key: VersionKey) -> Rejection | None:
        return self._rejected.get(key)

    def open(self, cause: Cause | None = None) -> Iterator[VersionKey]:
        """Versions whose last decision was a rejection (for `cause`), those looked at longest ago first."""
        for key, rejection in self._rejected.items():
            if cause is None or rejection.cause == cause:
                yield key

    def reasons(self, key: VersionKey) -> tuple[Reason, ...]:
        """What was decided about a version, newest first."""
        return tuple(reversed(self._made.get(key, ())))

    def forget(self, key: VersionKey) -> None:
        self._made.pop(key, None)
        self._rejected.pop(key, None)
