"""Is the converted model used? Pure: from a comparison and measured times to a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from msm.runtime.acceleration.verify import Comparison

WORTH: Final = 1.1  # below it a gain may be noise of the measurement


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one call, the fastest of several: of the original and of the converted model."""

    original: float
    converted: float

    @property
    def ratio(self) -> float:
        """How many times faster the converted model is."""
        return self.original / self.converted


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the converted model serves, and why."""

    used: bool
    reason: str


def decide(comparison: Comparison, one: Times | None, batch: Times | None) -> Verdict:
    """Used only if all answers agreed and it is faster: for one row or for a batch by at least `WORTH`, and for
    neither of them slower. `one` and `batch` are None when there was nothing to measure, after a disagreement."""
    if not comparison.agrees:
        return Verdict(False, f"it does not agree with the original: {comparison.why}")
    if not comparison.rows:
        return Verdict(False, "there were no inputs to compare it on")
    if one is None or batch is None:
        return Verdict(False, "its speed could not be measured")
    for times, what in ((one, "one row"), (batch, "a batch")):
        if times.ratio < 1.0:
            return Verdict(False, f"it agrees, but is slower for {what}: {times.ratio:.2f} times the original's speed")
    if max(one.ratio, batch.ratio) < WORTH:
        return Verdict(False, f"it agrees, but is hardly faster: {one.ratio:.2f} times for one row")
    return Verdict(True, f"it agrees, and is {one.ratio:.1f} times faster for one row, {batch.ratio:.1f} for a batch")
