"""What to do about workers that crash or hang, and about the versions that make them. Pure decisions.

The shell reports what it saw (a worker died, these versions were executing); these functions say how long to
wait before the next start, whom to blame and what follows for the blamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msm.resources.serving import VersionKey

RESTART_BASE_S = 0.1
RESTART_MOST_S = 10.0
STEADY_AFTER_S = 60.0

ISOLATE_CRASHES = 2
ISOLATE_WINDOW_S = 60.0
LOOP_CRASHES = 5
LOOP_WINDOW_S = 600.0
BLOCK_S = 900.0
ISOLATED_S = 900.0
FORGET_S = LOOP_WINDOW_S + BLOCK_S

SIGKILL = 9
MOST_DEATHS = 4  # of workers over one request
SURE_DEATHS = 2
LIKELY_DEATHS = 3


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the worker again after `delay_s`; `in_a_row` counts the deaths without a steady life between."""

    delay_s: float
    in_a_row: int
    reason: str


def restart(in_a_row: int, lived_s: float) -> Restart:
    """When a dead worker starts again: the first time at once, then 0.1 s, 0.2 s … 10 s.

    A life of a minute counts as steady and begins the row anew.
    """
    row = 1 if lived_s >= STEADY_AFTER_S else in_a_row + 1
    delay = 0.0 if row == 1 else min(RESTART_MOST_S, RESTART_BASE_S * 2.0 ** min(row - 2, 30))
    return Restart(delay, row, f"it lived {lived_s:.1f} s; death {row} in a row: next start in {delay:.1f} s")


Ending = Literal["crashed", "hung", "killed", "out_of_memory", "unknown"]


def ending(exit_status: int | None, *, condemned: bool, memory_ran_out: bool) -> Ending:
    """How a worker ended: of itself, by us because it hung, by the kernel for want of memory, or by somebody else.

    `exit_status` is negative for a signal and None when it cannot be known (a worker adopted from an earlier node
    process). Models cannot send SIGKILL by accident, so one that is not ours came from outside.
    """
    if condemned:
        return "hung"
    if exit_status is None:
        return "unknown"
    if exit_status == -SIGKILL:
        return "out_of_memory" if memory_ran_out else "killed"
    return "crashed"


@dataclass(frozen=True, slots=True)
class Blame:
    """The versions that a worker was executing when it died; `certain` when there can be no other culprit."""

    suspects: tuple[VersionKey, ...]
    certain: bool = False


def blame(slots: Sequence[str], how: Ending) -> Blame:
    """Whom to blame for a death, from the worker's black box (one text per slot, empty when unused).

    Nobody when the process was killed from outside. Text that names no version (a slot torn by the crash itself) is
    left out.
    """
    if how == "killed":
        return Blame(())
    found = {VersionKey.parse(text) for text in slots if text.count("/") == 2}
    return Blame(tuple(sorted(found)), certain=len(found) == 1 and how in ("crashed", "hung"))


@dataclass(frozen=True, slots=True)
class Crash:
    """A version was executing when its worker died at `at`. `certain`: nothing else was executing there."""

    at: float
    certain: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows for a version from its crashes.

    `isolated`: it runs in a process of its own. `blocked_until`: it takes no traffic before that moment.
    `look_again_at` is when the verdict changes by itself, None when it does not.
    """

    isolated: bool = False
    blocked_until: float | None = None
    reason: str = ""
    look_again_at: float | None = None


def judge(crashes: Sequence[Crash], now: float) -> Verdict:
    """The verdict about a version from its crashes, oldest first.

    Two deaths within a minute: a process of its own, until 15 minutes passed without a crash. Five certain
    ones within 10 minutes: CrashLoop, no traffic for 15 minutes. Only deaths in which nothing else was
    executing count for the latter, so that a neighbour of a crashing version is moved away from it but never
    blocked.
    """
    recent = [crash for crash in crashes if crash.at > now - FORGET_S]
    if not recent:
        return Verdict()
    sure = [crash.at for crash in recent if crash.certain]
    blocked_until = _blocked_until(sure)
    if blocked_until is not None and blocked_until > now:
        return Verdict(
            isolated=True,
            blocked_until=blocked_until,
            reason=f"it ended its worker {LOOP_CRASHES} times within {LOOP_WINDOW_S / 60:.0f} minutes",
            look_again_at=blocked_until,
        )
    moments = [crash.at for crash in recent]
    until = moments[-1] + ISOLATED_S
    if until <= now or _last_of_run(moments, ISOLATE_CRASHES, ISOLATE_WINDOW_S) is None:
        return Verdict()
    return Verdict(
        isolated=True,
        reason=f"it ended its worker {ISOLATE_CRASHES} times within {ISOLATE_WINDOW_S:.0f} s",
        look_again_at=until,
    )


def refuse_replay(crashes: Sequence[Crash], deaths: int, now: float) -> str | None:
    """Why a request whose worker died is not sent again; None when it may be.

    `deaths` counts the workers that died over it, `crashes` the deaths its version is suspected of. A neighbour of a
    crashing version is innocent and tried again; the version that crashes is not fed its poison a third time.
    """
    recent = [crash for crash in crashes if crash.at > now - ISOLATE_WINDOW_S]
    sure = sum(crash.certain for crash in recent)
    if deaths >= MOST_DEATHS:
        return f"{deaths} workers died while it was answered"
    if sure >= SURE_DEATHS or len(recent) >= LIKELY_DEATHS:
        return f"it ended its worker {len(recent)} times within {ISOLATE_WINDOW_S:.0f} s"
    return None


def forget(crashes: Sequence[Crash], now: float) -> tuple[Crash, ...]:
    """The crashes that can still matter at `now` or later."""
    return tuple(crash for crash in crashes if crash.at > now - FORGET_S)


def _blocked_until(moments: Sequence[float]) -> float | None:
    last = _last_of_run(moments, LOOP_CRASHES, LOOP_WINDOW_S)
    return None if last is None else last + BLOCK_S


def _last_of_run(moments: Sequence[float], count: int, window_s: float) -> float | None:
    """The last moment that ends a run of `count` moments within `window_s`, or None."""
    for end in range(len(moments) - 1, count - 2, -1):
        if moments[end] - moments[end - count + 1] <= window_s:
            return moments[end]
    return None


@dataclass(frozen=True, slots=True)
class Liveness:
    """Whether a worker hangs, and the sentence that says how it was seen."""

    hangs: bool
    reason: str = ""


def hangs(silent_s: float, hung: Sequence[str], hang_s: float) -> Liveness:
    """Whether a worker must be replaced.

    `silent_s` is the time since its event loop last answered or, if later, since it was first asked after an
    answer; `hung` are the versions it reports to be executing for longer than their own limit (a thread
    cannot be ended, so the process is).
    """
    if silent_s >= hang_s:
        return Liveness(True, f"it did not answer for {silent_s:.1f} s (limit {hang_s:.1f} s)")
    if hung:
        return Liveness(True, f"a call of {', '.join(sorted(hung))} does not end")
    return Liveness(False)
