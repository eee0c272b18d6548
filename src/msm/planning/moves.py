"""What a residency plan is made of: moves, rejections, and the sentences and numbers that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from msm.resources.serving import VersionKey

Numbers = Mapping[str, float | int | str]


class Urgency(IntEnum):
    """Why a load is wanted; lower goes first."""

    WAITING = 0
    MINIMUM = 1
    RESTORE = 2


@dataclass(frozen=True, slots=True)
class Load:
    """Load `key` into `worker`, charging `memory_bytes` from now on."""

    key: VersionKey
    worker: str
    memory_bytes: int
    reason: str
    priority: Urgency
    data: Numbers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unload:
    """Take `key` out of the routes, let its requests end, give its memory back."""

    key: VersionKey
    worker: str
    reason: str
    data: Numbers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dedicate:
    """Start a process for `key` alone, of `runtime` ("namespace/name", empty for the built-in worker)."""

    key: VersionKey
    reason: str
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Open:
    """Start the servers of a runtime: a version needs the first of them."""

    runtime: str
    reason: str


@dataclass(frozen=True, slots=True)
class Retire:
    """End a dedicated process, or a server of a runtime, that nothing needs."""

    worker: str
    reason: str


Move = Load | Unload | Dedicate | Open | Retire
Cause = Literal[
    "not_valid", "oversized", "load_failed", "crash_loop", "no_worker", "busy", "no_room"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rejection:
    """A wanted copy that cannot be loaded now.

    `final` means that waiting does not help: requests that wait get `message` at once. Otherwise the next
    change of the picture may help; `retry_at` is set when time alone will.
    """

    key: VersionKey
    cause: Cause
    message: str
    final: bool
    retry_at: float | None = None
    data: Numbers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResidencyPlan:
    """What to do now, what could not be done, and when to look again if nothing changes before."""

    moves: tuple[Move, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    look_again_at: float | None = None
