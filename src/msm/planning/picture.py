"""What residency decisions see of one node: workers, copies, wishes, memory. Plain values, no behaviour.

The shell keeps these values current one by one and hands them over as they are; a decision reads them and
changes nothing. Aggregates (a worker's memory, the node's used bytes) are part of the picture, so that
deciding about one version does not need a walk over all copies. All moments are seconds of one monotonic
clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from msm.resources.observed import CopyState
from msm.resources.serving import VersionKey

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One model process.

    `memory_bytes`, `in_flight` and `loads` are the sums over its copies: bytes charged, requests being
    executed, and loads in progress (`background` of them for nobody who waits). `dedicated` names the only
    version it may hold. `runtime` names the runtime whose server it is ("namespace/name"), empty for the built-in
    worker; `fault` says why its server cannot be started, `empty_since` since when it holds nothing and `keep_s` how
    long it is kept then.
    """

    id: str
    ready: bool = True
    memory_bytes: int = 0
    in_flight: int = 0
    loads: int = 0
    background: int = 0
    dedicated: VersionKey | None = None
    runtime: str = ""
    fault: str = ""
    empty_since: float | None = None
    keep_s: float = 300.0


@dataclass(frozen=True, slots=True)
class CopyView:
    """One version in one worker. `memory_bytes` is charged from the decision to load until the memory is
    back.

    `last_used` is the end of the last request, or the moment it became ready when there was none.
    """

    key: VersionKey
    worker: str
    state: CopyState
    memory_bytes: int
    in_flight: int = 0
    last_used: float = NEVER
    ready_since: float = NEVER
    load_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is declared and known about a version.

    `memory_bytes` and `load_seconds` are the measured cost; None while the version is not measured. `valid`
    is false until the version passed probation. `isolated` asks for a process of its own. `blocked_until` is
    set while the version may not run at all (it crashes its workers), `blocked_why` says why in a sentence.
    `runtime` names the runtime that runs it, empty for the built-in worker.
    """

    key: VersionKey
    minimum: int = 0
    maximum: int = 4
    idle_seconds: float = 900.0
    memory_bytes: int | None = None
    valid: bool = True
    isolated: bool = False
    blocked_until: float | None = None
    blocked_why: str = ""
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """Why a version is wanted beyond its declared minimum.

    `waiting` requests wait for it, the oldest since `since`. `keep` copies are wanted until `keep_until`:
    what was warm when a worker died is made warm again.
    """

    waiting: int = 0
    since: float = 0.0
    keep: int = 0
    keep_until: float = NEVER


@dataclass(frozen=True, slots=True)
class FailedLoad:
    """A load that failed: where, when and with what sentence.

    `passing_s` is set when the cause is expected to pass (the source was away, the disk full): then the failure counts
    for that time only.
    """

    worker: str
    at: float
    message: str
    passing_s: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers residency decides by.

    `loads_per_worker` bounds the loads in progress in one worker; loads that nobody waits for take at most
    `background_loads_per_worker` of them, so that a waiting request always finds a free slot soon.
    `most_tries` workers are tried for a version, a failure counts for `failure_memory_s` (half of it when a
    request waits). A copy stays for `stay_loads` times its own load time, at least `stay_s`, before it makes
    room for others: a request that just waited for it must be able to use it.
    """

    loads_per_worker: int = 4
    background_loads_per_worker: int = 2
    most_tries: int = 3
    failure_memory_s: float = 900.0
    stay_loads: float = 10.0
    stay_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One node at one moment.

    `attention` names the versions to decide about now; versions outside it are only looked at as candidates
    to make room. `used_bytes` counts every copy of `copies`, in whatever state.
    """

    capacity_bytes: int
    used_bytes: int
    workers: tuple[WorkerView, ...]
    copies: Mapping[VersionKey, tuple[CopyView, ...]]
    wanted: Mapping[VersionKey, Wanted]
    attention: Collection[VersionKey]
    demand: Mapping[VersionKey, Demand] = field(default_factory=dict)
    failures: Mapping[VersionKey, tuple[FailedLoad, ...]] = field(default_factory=dict)
    limits: Limits = Limits()


def with_sums(picture: Picture) -> Picture:
    """`picture` with its aggregates summed up from its copies, and attention on every version.

    For simulations and dry runs; the agent keeps the sums as it goes.
    """
    copies = [copy for held in picture.copies.values() for copy in held]
    workers = tuple(
        replace(
            worker,
            memory_bytes=sum(c.memory_bytes for c in copies if c.worker == worker.id),
            in_flight=sum(c.in_flight for c in copies if c.worker == worker.id),
            loads=sum(c.worker == worker.id and c.state == "Loading" for c in copies),
        )
        for worker in picture.workers
    )
    return replace(
        picture,
        workers=workers,
        used_bytes=sum(copy.memory_bytes for copy in copies),
        attention=sorted(set(picture.wanted) | set(picture.copies)),
    )
