"""Remembers which versions were executing when workers died, and asks `recovery` what follows for them."""

from __future__ import annotations

from msm.planning.recovery import Crash, Verdict, forget, judge, refuse_replay
from msm.resources.serving import VersionKey

CLEAR = Verdict()


class Guilt:
    """Crashes by version. A version with a new digest begins without any."""

    def __init__(self) -> None:
        self._crashes: dict[VersionKey, tuple[Crash, ...]] = {}

    def blame(self, key: VersionKey, now: float, *, certain: bool) -> Verdict:
        """Note a death of a worker that was executing `key`; returns what follows."""
        self._crashes[key] = (*forget(self._crashes.get(key, ()), now), Crash(now, certain))
        return judge(self._crashes[key], now)

    def verdict(self, key: VersionKey, now: float) -> Verdict:
        crashes = self._crashes.get(key)
        return judge(crashes, now) if crashes else CLEAR

    def refuse_replay(self, key: VersionKey, deaths: int, now: float) -> str | None:
        """Why a request to `key` over which `deaths` workers died is not sent again; None when it may be."""
        return refuse_replay(self._crashes.get(key, ()), deaths, now)

    def count(self, key: VersionKey) -> int:
        return len(self._crashes.get(key, ()))

    def clear(self, key: VersionKey) -> None:
        self._crashes.pop(key, None)
