"""Which versions are loaded where: from a picture of one node to moves, each with its reason. Pure.

The node's agent builds the picture, calls `plan`, and carries the moves out; it repeats that whenever
something changed, so a plan only has to be right for its picture. A picture that has what it wants gives no
moves.

Rules
 1. A version has max(minimum, 1 if requests wait, what is to be made warm again) copies, at most `maximum`,
    at most one in each worker.
 2. A worker is chosen by the power of two choices (Mitzenmacher 2001): two candidates drawn by a hash of the
    version and the number of tries, of which the one with the lower load is taken. Load is the sum of the
    worker's share of the memory, its requests in flight / 16 and its loads in progress / its slots.
 3. Memory is charged from the decision to load until the memory is really back. Nothing is loaded into memory
    that is still being given back: the load waits, and the room on its way is reserved for it.
 4. Room is made by least recent use weighed by the cost of loading again: copies go in falling order of
    idle seconds / max(load seconds, 0.1). The quotient is the inverse of the reload seconds expected per
    second when the time since the last use stands for the time to the next. Below 0.1 s load times are noise
    and plain LRU decides. Never a copy in use, never below what is wanted, never younger than max(10 × its
    load time, 1 s). What was lost with a worker comes back into free room only.
 5. Who waits goes first, the longest waiting before the others; then declared minimums; then what was lost.
 6. A failed load counts for 15 minutes (half of it when a request waits) and is tried on at most 3 workers.
 7. A version that crashes its workers lives in a process of its own, or nowhere while it is blocked.
 8. A version with a runtime goes to that runtime's servers only. They are started when a version needs the first of
    them, and ended when they held nothing for as long as the runtime says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from zlib import crc32

from msm.planning.moves import (
    Cause,
    Dedicate,
    Load,
    Move,
    Numbers,
    Open,
    Rejection,
    ResidencyPlan,
    Retire,
    Unload,
    Urgency,
)
from msm.planning.picture import CopyView, FailedLoad, Picture, Wanted, WorkerView
from msm.planning.room import Room, copies_wanted, idle_for, mib
from msm.resources.serving import VersionKey

IN_FLIGHT_SCALE = 16.0


def plan(picture: Picture, now: float) -> ResidencyPlan:
    """The moves for the versions that `picture.attention` names (rules in the module's text)."""
    return _Planner(picture, now).run()


@dataclass(slots=True)
class _Slot:
    """A worker with what this plan already gave it."""

    view: WorkerView
    memory_bytes: int
    loads: int
    background: int


@dataclass(frozen=True, slots=True)
class _Need:
    """One missing copy."""

    wanted: Wanted
    urgency: Urgency
    since: float
    holders: tuple[CopyView, ...]

    @property
    def order(self) -> tuple[int, float, VersionKey]:
        return self.urgency, self.since, self.wanted.key


class _Planner:
    """One run of `plan`: the picture plus a tally of what the plan has given away so far."""

    def __init__(self, picture: Picture, now: float) -> None:
        self._picture = picture
        self._now = now
        self._free = picture.capacity_bytes - picture.used_bytes
        self._coming: int | None = None  # bytes being given back; counted when room is short for the first time
        self._candidates: list[CopyView] = []  # what may make room, the next to go last
        self._settled_at: float | None = None  # when the next copy is old enough to make room
        self._slots = [_Slot(w, w.memory_bytes, w.loads, w.background) for w in picture.workers if w.ready]
        self._owners = {w.id: w.dedicated for w in picture.workers}
        self._dedicated = {w.dedicated: w.id for w in picture.workers if w.dedicated is not None}
        self._shared = Counter(slot.view.runtime for slot in self._slots if slot.view.dedicated is None)
        self._opened: set[str] = set()
        self._moves: list[Move] = []
        self._room = Room(picture, now, self._moves)
        self._rejected: list[Rejection] = []
        self._again: float | None = None

    def run(self) -> ResidencyPlan:
        needs: list[_Need] = []
        for key in self._picture.attention:
            needs += self._settle(key)
        for need in sorted(needs, key=lambda need: need.order):
            self._place(need)
        self._retire()
        return ResidencyPlan(tuple(self._moves), tuple(self._rejected), self._again)

    # ---- what one version should have

    def _settle(self, key: VersionKey) -> list[_Need]:
        """Give up the copies of `key` that nobody wants; return the ones that are missing."""
        copies = self._picture.copies.get(key, ())
        wanted = self._picture.wanted.get(key)
        if wanted is None:
            self._unload_ready(copies, "it is no longer declared")
            return []
        if wanted.blocked_until is not None and wanted.blocked_until > self._now:
            self._block(wanted, wanted.blocked_until, copies)
            return []
        demand = self._picture.demand.get(key)
        count, urgency = copies_wanted(wanted, demand, self._now)
        if demand is not None and demand.keep_until > self._now:
            self._look_again(demand.keep_until)
        placed = copies
        if copies:
            placed = self._leave_wrong_workers(wanted, copies)
            self._shrink(wanted, count, placed)
        live = sum(copy.state in ("Loading", "Ready") for copy in placed)
        hosts = 1 if wanted.isolated else self._shared[wanted.runtime]
        missing = min(count, max(hosts, 1)) - live
        if missing <= 0:
            return []
        waiting = demand is not None and demand.waiting > 0 and live == 0
        needs = [_Need(wanted, urgency, float("inf"), copies)] * (missing - waiting)
        if waiting and demand is not None:
            needs.append(_Need(wanted, Urgency.WAITING, demand.since, copies))
        return needs

    def _block(self, wanted: Wanted, until: float, copies: tuple[CopyView, ...]) -> None:
        self._unload_ready(copies, f"it takes no traffic: {wanted.blocked_why}")
        message = f"it takes no traffic for {until - self._now:.0f} s: {wanted.blocked_why}"
        self._reject(wanted.key, "crash_loop", message, final=True, retry_at=until)

    def _unload_ready(self, copies: tuple[CopyView, ...], reason: str) -> None:
        self._moves += [Unload(copy.key, copy.worker, reason) for copy in copies if copy.state == "Ready"]

    def _leave_wrong_workers(self, wanted: Wanted, copies: tuple[CopyView, ...]) -> tuple[CopyView, ...]:
        """An isolated version leaves the workers it shares at once; returns the copies that are in place."""
        if not wanted.isolated:
            return copies
        wrong = tuple(copy for copy in copies if self._owners.get(copy.worker) != wanted.key)
        self._unload_ready(wrong, "it needs a process of its own: it ended shared workers")
        return tuple(copy for copy in copies if copy not in wrong)

    def _shrink(self, wanted: Wanted, count: int, copies: tuple[CopyView, ...]) -> None:
        """Unload what exceeds the maximum, and what was idle for too long beyond the wanted count."""
        ready = [copy for copy in copies if copy.state == "Ready"]
        if len(ready) <= count:
            return
        ready.sort(key=lambda copy: (copy.last_used, copy.worker))
        over = len(ready) - wanted.maximum
        spare = len(ready) - count
        for position, copy in enumerate(ready[:spare]):
            idle_s = idle_for(copy, self._now)
            if position < over:
                reason = f"{len(ready)} copies, at most {wanted.maximum} are declared"
                self._moves.append(Unload(copy.key, copy.worker, reason, {"copies": len(ready)}))
            elif copy.in_flight:
                self._look_again(self._now + wanted.idle_seconds)
            elif idle_s < wanted.idle_seconds:
                self._look_again(copy.last_used + wanted.idle_seconds)
            else:
                reason = f"no request for {wanted.idle_seconds:.0f} s"
                data = {"idle_s": round(idle_s, 3), "idle_seconds": wanted.idle_seconds}
                self._moves.append(Unload(copy.key, copy.worker, reason, data))

    # ---- where a missing copy goes

    def _place(self, need: _Need) -> None:
        wanted = need.wanted
        memory = wanted.memory_bytes
        if not wanted.valid or memory is None:
            self._reject(wanted.key, "not_valid", "it is not fetched and tested yet", final=False)
            return
        if memory > self._picture.capacity_bytes:
            self._reject_oversized(wanted.key, memory)
            return
        hosts = self._hosts(need)
        if hosts is None:
            return
        failed = self._failures(need)
        untried = [slot for slot in hosts if slot.view.id not in failed]
        if failed and (not untried or len(failed) >= self._picture.limits.most_tries):
            self._reject_failed(wanted.key, failed, need.urgency)
            return
        open_slots = [slot for slot in untried if self._has_turn(slot, need.urgency)]
        if not open_slots:
            message = f"each of {len(untried)} workers is loading as much as it may"
            self._reject(wanted.key, "busy", message, final=False, data={"workers": len(untried)})
            return
        if self._make_room(need, memory):
            self._load(need, memory, self._choose(open_slots, wanted.key, len(failed)))

    def _hosts(self, need: _Need) -> list[_Slot] | None:
        """The living workers that may take this copy; None (with a reason noted) when there is none."""
        key = need.wanted.key
        if need.wanted.isolated and key not in self._dedicated:
            self._moves.append(Dedicate(key, "it ended its worker twice within a minute", need.wanted.runtime))
            self._dedicated[key] = ""
        owner = key if need.wanted.isolated else None
        taken = {copy.worker for copy in need.holders}
        taken |= {m.worker for m in self._moves if isinstance(m, Load) and m.key == key}
        runtime = need.wanted.runtime
        suited = [s for s in self._slots if s.view.dedicated == owner and s.view.runtime == runtime]
        fit = [slot for slot in suited if slot.view.id not in taken]
        if fit:
            return fit
        if runtime and not suited:
            self._open(key, runtime, owner)
        elif need.wanted.isolated or not suited:
            self._reject(key, "no_worker", "no worker that may take it is running", final=False)
        else:
            self._reject(key, "busy", "every worker holds a copy that is still being unloaded", final=False)
        return None

    def _open(self, key: VersionKey, runtime: str, owner: VersionKey | None) -> None:
        """No server of the runtime can be used: start them, unless they are starting or cannot be started."""
        places = [w for w in self._picture.workers if w.runtime == runtime and w.dedicated == owner]
        if not places and owner is None and runtime not in self._opened:
            self._opened.add(runtime)
            self._moves.append(Open(runtime, f"{key} needs it"))
        faults = [place.fault for place in places]
        if faults and all(faults):
            message = f"the server of runtime {runtime} cannot be started: {faults[0]}"
            self._reject(key, "no_worker", message, final=True)
        else:
            self._reject(key, "no_worker", f"the server of runtime {runtime} is starting", final=False)

    def _failures(self, need: _Need) -> dict[str, FailedLoad]:
        """The failed loads that still count, by worker, oldest first."""
        known = self._picture.failures.get(need.wanted.key, ())
        if not known:
            return {}
        return {failed.worker: failed for failed in known if self._counts_until(failed, need.urgency) > self._now}

    def _counts_until(self, failed: FailedLoad, urgency: Urgency) -> float:
        memory_s = self._picture.limits.failure_memory_s
        if failed.passing_s is not None:
            memory_s = failed.passing_s
        elif urgency is Urgency.WAITING:
            memory_s /= 2
        return failed.at + memory_s

    def _has_turn(self, slot: _Slot, urgency: Urgency) -> bool:
        limits = self._picture.limits
        if slot.loads >= limits.loads_per_worker:
            return False
        return urgency is Urgency.WAITING or slot.background < limits.background_loads_per_worker

    def _choose(self, slots: list[_Slot], key: VersionKey, tries: int) -> _Slot:
        if len(slots) > 2:
            seed = crc32(f"{key}#{tries}".encode())
            first = seed % len(slots)
            second = (first + 1 + (seed >> 16) % (len(slots) - 1)) % len(slots)
            slots = [slots[first], slots[second]]
        return min(slots, key=lambda slot: (self._load_of(slot), slot.view.id))

    def _load_of(self, slot: _Slot) -> float:
        share = slot.memory_bytes * len(self._slots) / max(self._picture.capacity_bytes, 1)
        turns = slot.loads / self._picture.limits.loads_per_worker
        return share + slot.view.in_flight / IN_FLIGHT_SCALE + turns

    def _load(self, need: _Need, memory: int, slot: _Slot) -> None:
        why = {
            Urgency.WAITING: "a request waits for it",
            Urgency.MINIMUM: f"at least {need.wanted.minimum} copies are declared",
            Urgency.RESTORE: "it was in use when its worker died",
        }[need.urgency]
        data: Numbers = {
            "memory_bytes": memory,
            "free_bytes": self._room.free,
            "load": round(self._load_of(slot), 4),
        }
        self._moves.append(Load(need.wanted.key, slot.view.id, memory, why, need.urgency, data))
        slot.memory_bytes += memory
        slot.loads += 1
        slot.background += need.urgency is not Urgency.WAITING

    def _make_room(self, need: _Need, memory: int) -> bool:
        """Whether `memory` is free now. If not, reserve what is coming and unload what may go for the rest."""
        if self._room.take(memory):
            return True
        if need.urgency is Urgency.RESTORE:
            self._reject_room(need, memory, "what was lost with a worker comes back into free memory only")
            return False
        found = self._room.reserve(memory, for_key=need.wanted.key)
        if found is None:
            self._reject_room(need, memory, "everything loaded is in use, wanted, or too young to go", short=True)
        else:
            self._moves += found
            self._reject_room(need, memory, "memory is being given back for it")
        return False

    # ---- what cannot be had

    def _reject_oversized(self, key: VersionKey, memory: int) -> None:
        capacity = self._picture.capacity_bytes
        message = f"it needs {mib(memory)}, the node has {mib(capacity)} for models"
        data = {"memory_bytes": memory, "capacity_bytes": capacity}
        self._reject(key, "oversized", message, final=True, data=data)

    def _reject_failed(self, key: VersionKey, failed: dict[str, FailedLoad], urgency: Urgency) -> None:
        last = max(failed.values(), key=lambda failure: failure.at)
        again = min(self._counts_until(failure, urgency) for failure in failed.values())
        data: Numbers = {"tries": len(failed), "retry_in_s": round(again - self._now, 1)}
        self._reject(key, "load_failed", last.message, final=True, retry_at=again, data=data)

    def _reject_room(self, need: _Need, memory: int, why: str, *, short: bool = False) -> None:
        free = self._picture.capacity_bytes - self._picture.used_bytes
        message = f"it needs {mib(memory)}, {mib(max(free, 0))} are free: {why}"
        data: Numbers = {"memory_bytes": memory, "free_bytes": free}
        retry_at = self._room.settled_at if short else None
        self._reject(need.wanted.key, "no_room", message, final=False, retry_at=retry_at, data=data)

    def _reject(
        self,
        key: VersionKey,
        cause: Cause,
        message: str,
        *,
        final: bool,
        retry_at: float | None = None,
        data: Numbers | None = None,
    ) -> None:
        self._rejected.append(Rejection(key, cause, message, final, retry_at, data or {}))
        if retry_at is not None:
            self._look_again(retry_at)

    # ---- afterwards

    def _retire(self) -> None:
        """End dedicated processes whose version is gone, no longer isolated, blocked, or not wanted at present, and
        servers of runtimes that held nothing for long."""
        for view in self._picture.workers:
            if view.runtime and view.dedicated is None and view.empty_since is not None:
                self._retire_server(view, view.empty_since + view.keep_s)
        for key, worker in self._dedicated.items():
            if not worker or self._picture.copies.get(key):
                continue
            wanted = self._picture.wanted.get(key)
            if wanted is None or not wanted.isolated:
                self._moves.append(Retire(worker, f"{key} needs no process of its own any more"))
            elif copies_wanted(wanted, self._picture.demand.get(key), self._now)[0] == 0:
                self._moves.append(Retire(worker, f"{key} is not wanted at present"))

    def _retire_server(self, view: WorkerView, at: float) -> None:
        placed = any(isinstance(move, Load) and move.worker == view.id for move in self._moves)
        needed = any(self._wants(key, view.runtime) for key in (*self._picture.attention, *self._picture.demand))
        if placed or needed:
            return
        if at > self._now:
            self._look_again(at)
        else:
            self._moves.append(Retire(view.id, f"it held no model for {view.keep_s:.0f} s"))

    def _wants(self, key: VersionKey, runtime: str) -> bool:
        """Whether a version of this runtime is to have a copy now."""
        wanted = self._picture.wanted.get(key)
        if wanted is None or wanted.runtime != runtime:
            return False
        return copies_wanted(wanted, self._picture.demand.get(key), self._now)[0] > 0

    def _look_again(self, at: float) -> None:
        self._again = at if self._again is None else min(self._again, at)
