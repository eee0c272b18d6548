"""How a version is best run, found out while it serves: where, how many runs at once, how many rows a run. Pure.

A run that takes less than a change of threads is done on the event loop, all others in threads; a model whose runs hold
the interpreter for long, so that nothing else of the worker can run, gets a process of its own. More than one run at a
time pays for a model that waits (for a disk, another service, a lock) much longer than it computes, and only where its
format says that it may be called by several threads. A larger batch pays as long as a row in it costs less than a row
in a smaller one: the costs are kept by the power of two of the rows, and looked at again now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

FAST_S: Final = 1e-3  # below this a run holds the event loop less than a change of threads would cost
_FRESH: Final = 0.2  # share of the newest run in the running means
_ENOUGH: Final = 5  # runs of a size before its cost is believed
_CHEAPER: Final = 0.9  # a row of a larger batch must cost at most this much of one of a smaller batch
_AGAIN: Final = 256  # runs after which larger batches are tried once more
_WAITS: Final = 3.0  # elapsed over computed time from which a model counts as one that waits
_WAITING_RUNS: Final = 20
_HELD_S: Final = 0.05  # from here on holding the interpreter hurts the neighbours more than a process costs
_HELD_RUNS: Final = 3
_SIZES: Final = 24  # powers of two of rows


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is allowed: declared limits, and what the format of the model says of it.

    `may_move`: it can be given a process of its own; `moved`: it has one.
    """

    rows: int
    concurrency: int
    may_block: bool
    may_move: bool = False
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """How to run a version, and why in words."""

    where: Literal["loop", "thread", "process"]
    concurrency: int
    rows: int
    why: str

    def __str__(self) -> str:
        place = {"loop": "on the event loop", "thread": "in a thread", "process": "in a process of its own"}[self.where]
        at_once = "one at a time" if self.concurrency == 1 else f"{self.concurrency} at a time"
        return f"{place}, {at_once}, up to {self.rows} rows a run: {self.why}"


class Profile:
    """What runs of a version have cost so far: processor and elapsed seconds, and seconds a row by size of the batch.

    `expected_s` is what a run of one row took when it was measured before, None when it was not.
    """

    __slots__ = ("_counts", "_per_row", "elapsed_s", "held_runs", "held_s", "mean_s", "runs", "threaded")

    def __init__(self, expected_s: float | None = None) -> None:
        self.mean_s = expected_s
        self.elapsed_s = 0.0
        self.runs = 0
        self.threaded = 0
        self.held_s = 0.0
        self.held_runs = 0
        self._counts = [0] * _SIZES
        self._per_row = [0.0] * _SIZES

    def learn(self, rows: int, computed_s: float, elapsed_s: float | None = None) -> None:
        """Take a run in. `elapsed_s` only for one in a thread: on the loop a run cannot wait without being seen."""
        mean = self.mean_s
        self.runs += 1
        # A run far beyond the limit counts at once: a second one must not hold the loop.
        slow = mean is None or computed_s > 10 * FAST_S
        self.mean_s = computed_s if slow or mean is None else mean + _FRESH * (computed_s - mean)
        if elapsed_s is not None:
            self.threaded += 1
            self.elapsed_s += (1.0 if self.threaded == 1 else _FRESH) * (elapsed_s - self.elapsed_s)
        if rows > 0:
            size = min(rows.bit_length() - 1, _SIZES - 1)
            count = self._counts[size]
            self._counts[size] = count + 1
            cost = computed_s / rows
            self._per_row[size] += (1.0 if count == 0 else _FRESH) * (cost - self._per_row[size])

    def held(self, seconds: float) -> None:
        """Take in how long a run in a thread kept everything else of the process from running."""
        if seconds < _HELD_S:
            self.held_runs = 0
        else:
            self.held_runs += 1
            self.held_s = seconds

    def costs(self) -> dict[int, float]:
        """Seconds a row by rows of a batch (the power of two below), of the sizes that were run often enough."""
        return {
            1 << size: cost
            for size, (count, cost) in enumerate(zip(self._counts, self._per_row, strict=True))
            if count >= _ENOUGH
        }


def choose(profile: Profile, bounds: Bounds) -> Execution:
    """The way to run a version now."""
    rows, why_rows = _rows(profile, bounds)
    concurrency, why_concurrency = _concurrency(profile, bounds)
    where: Literal["loop", "thread", "process"] = "thread"
    if bounds.moved or (bounds.may_move and profile.held_runs >= _HELD_RUNS):
        where = "process"
        why = f"its runs hold the interpreter for {profile.held_s:.2g} s" if profile.held_s else "it was declared so"
    elif bounds.may_block:
        why = "its code may block"
    elif profile.mean_s is None:
        why = "it was not measured yet"
    elif profile.mean_s < FAST_S:
        where, why = "loop", f"a run takes {profile.mean_s * 1e3:.3g} ms"
    else:
        why = f"a run takes {profile.mean_s * 1e3:.3g} ms"
    return Execution(where, concurrency, rows, "; ".join(part for part in (why, why_concurrency, why_rows) if part))


def _rows(profile: Profile, bounds: Bounds) -> tuple[int, str]:
    if profile.runs % _AGAIN == 0:
        return bounds.rows, ""
    costs = profile.costs()
    if len(costs) < 2:
        return bounds.rows, ""
    sizes = sorted(costs)
    best = sizes[0]
    for size in sizes[1:]:
        if costs[size] <= _CHEAPER * costs[best]:
            best = size
    if best == sizes[-1]:
        return bounds.rows, f"a row in a batch of {best} costs {costs[best] / costs[sizes[0]]:.2f} of one in {sizes[0]}"
    return min(bounds.rows, 2 * best - 1), f"rows cost no less in batches over {2 * best - 1}"


def _concurrency(profile: Profile, bounds: Bounds) -> tuple[int, str]:
    computed = profile.mean_s
    if bounds.concurrency == 1 or computed is None or profile.threaded < _WAITING_RUNS:
        return 1, ""
    if profile.elapsed_s < FAST_S or profile.elapsed_s < _WAITS * computed:
        return 1, ""
    times = profile.elapsed_s / max(computed, 1e-6)
    return bounds.concurrency, f"it waits: a run lasts {times:.0f} times what it computes"
