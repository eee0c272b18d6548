"""Which versions are loaded where: each test is a rule of `msm.planning.residency`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from msm.planning.moves import Dedicate, Load, ResidencyPlan, Retire, Unload, Urgency
from msm.planning.picture import (
    CopyView,
    Demand,
    FailedLoad,
    Limits,
    Picture,
    Wanted,
    WorkerView,
    with_sums,
)
from msm.planning.residency import plan
from msm.resources.serving import VersionKey

NOW = 10_000.0
MIB = 1 << 20
A, B, C, D = (VersionKey("default", name, "v1") for name in "abcd")


def wanted(key: VersionKey, **fields: Any) -> Wanted:
    return Wanted(**{"key": key, "memory_bytes": 10 * MIB, **fields})


def ready(key: VersionKey, worker: str = "w0", *, idle_s: float = 100.0, **fields: Any) -> CopyView:
    values = {"memory_bytes": 10 * MIB, "last_used": NOW - idle_s, "ready_since": NOW - 1000.0, "load_seconds": 1.0}
    return CopyView(key, worker, "Ready", **{**values, **fields})


def waits(since: float = NOW, count: int = 1) -> Demand:
    return Demand(waiting=count, since=since)


def picture(
    *wishes: Wanted,
    copies: tuple[CopyView, ...] = (),
    demand: dict[VersionKey, Demand] | None = None,
    workers: tuple[WorkerView, ...] = (WorkerView("w0"), WorkerView("w1")),
    capacity: int = 100 * MIB,
    **fields: Any,
) -> Picture:
    by_key: dict[VersionKey, tuple[CopyView, ...]] = {}
    for copy in copies:
        by_key[copy.key] = (*by_key.get(copy.key, ()), copy)
    return with_sums(
        Picture(capacity, 0, workers, by_key, {wish.key: wish for wish in wishes}, (), demand or {}, **fields)
    )


def loads(decision: ResidencyPlan) -> list[VersionKey]:
    return [move.key for move in decision.moves if isinstance(move, Load)]


def unloads(decision: ResidencyPlan) -> list[VersionKey]:
    return [move.key for move in decision.moves if isinstance(move, Unload)]


def causes(decision: ResidencyPlan) -> list[str]:
    return [rejection.cause for rejection in decision.rejected]


def carried_out(before: Picture, decision: ResidencyPlan) -> Picture:
    """The picture after every move of a plan has ended."""
    copies = [copy for held in before.copies.values() for copy in held]
    for move in decision.moves:
        if isinstance(move, Load):
            copies.append(ready(move.key, move.worker, idle_s=0.0, memory_bytes=move.memory_bytes, ready_since=NOW))
        elif isinstance(move, Unload):
            copies = [copy for copy in copies if (copy.key, copy.worker) != (move.key, move.worker)]
    return picture(
        *before.wanted.values(),
        copies=tuple(copies),
        demand=dict(before.demand),
        workers=before.workers,
        capacity=before.capacity_bytes,
    )


# ---- how many copies


def test_a_version_that_nobody_wants_is_not_loaded():
    assert plan(picture(wanted(A)), NOW) == ResidencyPlan()


def test_a_waiting_request_loads_one_copy_with_its_reason():
    decision = plan(picture(wanted(A), demand={A: waits(count=200)}), NOW)
    (move,) = decision.moves
    assert isinstance(move, Load)
    assert (move.key, move.priority, move.memory_bytes) == (A, Urgency.WAITING, 10 * MIB)
    assert move.reason == "a request waits for it"
    assert move.data["free_bytes"] == 90 * MIB or move.data["free_bytes"] == 100 * MIB


def test_minimum_copies_go_to_different_workers():
    decision = plan(picture(wanted(A, minimum=2)), NOW)
    assert sorted(move.worker for move in decision.moves if isinstance(move, Load)) == ["w0", "w1"]


def test_there_are_never_more_copies_than_workers():
    decision = plan(picture(wanted(A, minimum=4)), NOW)
    assert loads(decision) == [A, A]
    assert plan(carried_out(picture(wanted(A, minimum=4)), decision), NOW).moves == ()


def test_a_loading_copy_counts():
    loading = CopyView(A, "w0", "Loading", 10 * MIB)
    assert plan(picture(wanted(A), copies=(loading,), demand={A: waits()}), NOW).moves == ()


def test_copies_above_the_maximum_go_the_least_recently_used_first():
    copies = (ready(A, "w0", idle_s=5.0), ready(A, "w1", idle_s=50.0))
    (move,) = plan(picture(wanted(A, maximum=1, minimum=1), copies=copies), NOW).moves
    assert (move.key, move.worker) == (A, "w1")


def test_idle_copies_beyond_the_minimum_go_and_the_plan_says_when():
    wish = wanted(A, minimum=1, idle_seconds=60.0)
    copies = (ready(A, "w0", idle_s=61.0), ready(A, "w1", idle_s=30.0))
    decision = plan(picture(wish, copies=copies), NOW)
    (move,) = decision.moves
    assert (move.worker, move.reason) == ("w0", "no request for 60 s")
    both = plan(picture(wanted(A, idle_seconds=60.0), copies=copies), NOW)
    assert unloads(both) == [A]
    assert both.look_again_at == NOW + 30.0


def test_a_busy_copy_is_not_idle_however_long_ago_it_ended_a_request():
    decision = plan(picture(wanted(A, idle_seconds=60.0), copies=(ready(A, in_flight=1),)), NOW)
    assert decision.moves == ()
    assert decision.look_again_at == NOW + 60.0


def test_what_was_lost_with_a_worker_is_wanted_for_a_while():
    kept = {A: Demand(keep=2, keep_until=NOW + 50.0)}
    decision = plan(picture(wanted(A), demand=kept), NOW)
    assert loads(decision) == [A, A]
    assert {move.priority for move in decision.moves if isinstance(move, Load)} == {Urgency.RESTORE}
    assert decision.look_again_at == NOW + 50.0
    assert plan(picture(wanted(A), demand={A: Demand(keep=2, keep_until=NOW)}), NOW).moves == ()


def test_copies_of_what_is_not_declared_any_more_go():
    (move,) = plan(picture(copies=(ready(A),)), NOW).moves
    assert (move.key, move.reason) == (A, "it is no longer declared")


def test_what_is_loading_while_its_declaration_goes_is_unloaded_when_it_is_ready():
    assert plan(picture(copies=(CopyView(A, "w0", "Loading", MIB),)), NOW).moves == ()


# ---- where a copy goes


def test_the_emptier_of_two_workers_is_chosen():
    busy = ready(B, "w0", memory_bytes=50 * MIB)
    (move,) = plan(picture(wanted(A), wanted(B), copies=(busy,), demand={A: waits()}), NOW).moves
    assert move.worker == "w1"


def test_requests_in_flight_weigh_as_well():
    copies = (ready(B, "w0", in_flight=16), ready(C, "w1"))
    (move,) = plan(picture(wanted(A), wanted(B), wanted(C), copies=copies, demand={A: waits()}), NOW).moves
    assert move.worker == "w1"


def test_many_loads_of_one_plan_spread_over_the_workers():
    keys = [VersionKey("default", f"m{number}", "v1") for number in range(40)]
    workers = tuple(WorkerView(f"w{number}") for number in range(8))
    demand = {key: waits() for key in keys}
    decision = plan(picture(*map(wanted, keys), demand=demand, workers=workers, capacity=1000 * MIB), NOW)
    counts = [sum(move.worker == worker.id for move in decision.moves) for worker in workers]
    assert sum(counts) + len(decision.rejected) == 40
    assert max(counts) <= 4
    assert sum(counts) >= 28, "power of two choices fills nearly all of the 32 slots"


def test_loads_in_one_worker_are_bounded_and_the_rest_waits_for_its_turn():
    keys = [VersionKey("default", f"m{number}", "v1") for number in range(6)]
    decision = plan(
        picture(*map(wanted, keys), demand={key: waits() for key in keys}, workers=(WorkerView("w0"),)), NOW
    )
    assert len(loads(decision)) == 4
    assert causes(decision) == ["busy", "busy"]


def test_loads_nobody_waits_for_leave_slots_for_those_who_wait():
    background = [VersionKey("default", f"b{number}", "v1") for number in range(6)]
    wishes = [wanted(key, minimum=1) for key in background]
    one = (WorkerView("w0"),)
    assert len(loads(plan(picture(*wishes, workers=one), NOW))) == 2
    decision = plan(picture(*wishes, wanted(A), demand={A: waits()}, workers=one), NOW)
    assert loads(decision)[0] == A
    assert len(loads(decision)) == 3


def test_the_longest_waiting_request_goes_first():
    one = (WorkerView("w0"),)
    limits = Limits(loads_per_worker=1)
    demand = {A: waits(NOW - 1.0), B: waits(NOW - 2.0)}
    decision = plan(picture(wanted(A), wanted(B), demand=demand, workers=one, limits=limits), NOW)
    assert loads(decision) == [B]


@pytest.mark.parametrize("workers", [(), (WorkerView("w0", ready=False),)])
def test_without_a_living_worker_the_request_goes_on_waiting(workers: tuple[WorkerView, ...]):
    decision = plan(picture(wanted(A), demand={A: waits()}, workers=workers), NOW)
    assert [(r.cause, r.final) for r in decision.rejected] == [("no_worker", False)]


def test_a_worker_that_still_unloads_the_version_cannot_take_it():
    leaving = (CopyView(A, "w0", "Unloading", MIB), CopyView(A, "w1", "Draining", MIB))
    decision = plan(picture(wanted(A), copies=leaving, demand={A: waits()}), NOW)
    assert (loads(decision), causes(decision)) == ([], ["busy"])


def test_a_version_that_is_not_tested_yet_waits():
    decision = plan(picture(wanted(A, valid=False), demand={A: waits()}), NOW)
    assert [(r.cause, r.final) for r in decision.rejected] == [("not_valid", False)]


# ---- room


def test_loading_and_unloading_memory_counts_as_used():
    copies = (CopyView(B, "w0", "Loading", 60 * MIB), CopyView(C, "w1", "Unloading", 35 * MIB))
    decision = plan(picture(wanted(A), wanted(B), wanted(C), copies=copies, demand={A: waits()}), NOW)
    assert loads(decision) == []
    (rejection,) = decision.rejected
    assert (rejection.cause, rejection.final) == ("no_room", False)
    assert rejection.message == "it needs 10.0 MiB, 5.0 MiB are free: memory is being given back for it"


def test_room_on_its_way_is_reserved_once():
    coming = CopyView(D, "w1", "Unloading", 10 * MIB)
    resident = ready(C, "w0", memory_bytes=90 * MIB, in_flight=1)
    demand = {A: waits(NOW - 2.0), B: waits(NOW - 1.0)}
    decision = plan(picture(*map(wanted, (A, B, C, D)), copies=(coming, resident), demand=demand), NOW)
    messages = {rejection.key: rejection.message for rejection in decision.rejected}
    assert "memory is being given back for it" in messages[A]
    assert "everything loaded is in use" in messages[B]


def test_an_oversized_version_is_rejected_for_good_with_the_numbers():
    decision = plan(picture(wanted(A, memory_bytes=101 * MIB), demand={A: waits()}), NOW)
    (rejection,) = decision.rejected
    assert (rejection.cause, rejection.final) == ("oversized", True)
    assert rejection.message == "it needs 101.0 MiB, the node has 100.0 MiB for models"


def test_the_least_recently_used_copy_makes_room_and_no_more_than_needed():
    copies = tuple(
        ready(key, "w0", memory_bytes=33 * MIB, idle_s=idle) for key, idle in ((A, 10.0), (B, 300.0), (C, 20.0))
    )
    demand = {D: waits()}
    decision = plan(picture(*map(wanted, (A, B, C, D)), copies=copies, demand=demand), NOW)
    assert unloads(decision) == [B]
    assert loads(decision) == []
    freed = picture(*map(wanted, (A, B, C, D)), copies=tuple(copy for copy in copies if copy.key != B), demand=demand)
    assert loads(plan(freed, NOW)) == [D]


def test_a_copy_that_is_dear_to_load_stays_longer_than_its_last_use_says():
    copies = (
        ready(A, idle_s=100.0, load_seconds=10.0, memory_bytes=50 * MIB),  # 100 / 10 = 10
        ready(B, idle_s=30.0, load_seconds=0.5, memory_bytes=50 * MIB),  # 30 / 0.5 = 60: goes first
    )
    assert unloads(plan(picture(*map(wanted, (A, B, C)), copies=copies, demand={C: waits()}), NOW)) == [B]


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({"in_flight": 1}, "in use"),
        ({"ready_since": NOW - 9.0, "load_seconds": 1.0}, "younger than ten times its load time"),
        ({"ready_since": NOW - 0.5, "load_seconds": 0.001}, "younger than a second"),
    ],
)
def test_some_copies_never_make_room(kept: dict[str, Any], why: str):
    copy = ready(B, memory_bytes=95 * MIB, **kept)
    decision = plan(picture(wanted(A), wanted(B), copies=(copy,), demand={A: waits()}), NOW)
    assert decision.moves == (), why
    assert causes(decision) == ["no_room"]


def test_a_young_copy_gives_the_time_when_it_may_go():
    copy = ready(B, memory_bytes=95 * MIB, ready_since=NOW - 4.0, load_seconds=1.0)
    decision = plan(picture(wanted(A), wanted(B), copies=(copy,), demand={A: waits()}), NOW)
    assert decision.rejected[0].retry_at == NOW + 6.0
    assert decision.look_again_at == NOW + 6.0


def test_a_declared_minimum_is_never_undercut_for_room():
    copies = (ready(B, "w0", memory_bytes=45 * MIB), ready(B, "w1", memory_bytes=50 * MIB, idle_s=500.0))
    wish = wanted(B, minimum=1)
    decision = plan(picture(wanted(A), wish, copies=copies, demand={A: waits()}), NOW)
    assert [(move.key, move.worker) for move in decision.moves if isinstance(move, Unload)] == [(B, "w1")]
    both = plan(picture(wanted(A, memory_bytes=60 * MIB), wish, copies=copies, demand={A: waits()}), NOW)
    assert both.moves == ()


def test_when_all_candidates_do_not_suffice_none_goes():
    copies = (ready(B, memory_bytes=20 * MIB), ready(C, memory_bytes=75 * MIB, in_flight=3))
    big = wanted(A, memory_bytes=50 * MIB)
    decision = plan(picture(big, wanted(B), wanted(C), copies=copies, demand={A: waits()}), NOW)
    assert decision.moves == ()
    assert causes(decision) == ["no_room"]


def test_what_was_lost_with_a_worker_pushes_nothing_out():
    copies = (ready(B, memory_bytes=95 * MIB),)
    kept = {A: Demand(keep=1, keep_until=NOW + 50.0)}
    decision = plan(picture(wanted(A), wanted(B), copies=copies, demand=kept), NOW)
    assert decision.moves == ()
    assert causes(decision) == ["no_room"]


def test_ten_demands_at_once_push_out_exactly_ten():
    residents = [VersionKey("default", f"r{number}", "v1") for number in range(10)]
    newcomers = [VersionKey("default", f"n{number}", "v1") for number in range(10)]
    copies = tuple(ready(key, f"w{n % 2}", idle_s=100.0 + n) for n, key in enumerate(residents))
    limits = Limits(loads_per_worker=20)
    before = picture(
        *map(wanted, [*residents, *newcomers]), copies=copies, demand={key: waits() for key in newcomers}, limits=limits
    )
    decision = plan(before, NOW)
    assert sorted(unloads(decision)) == sorted(residents)
    assert causes(decision) == ["no_room"] * 10
    leaving = tuple(replace(copy, state="Unloading") for copy in copies)
    while_leaving = plan(
        picture(
            *map(wanted, [*residents, *newcomers]),
            copies=leaving,
            demand={key: waits() for key in newcomers},
            limits=limits,
        ),
        NOW,
    )
    assert while_leaving.moves == (), "no cascade while the memory is on its way"


# ---- failures and crashes


def test_a_failed_load_is_tried_on_another_worker_and_then_told():
    once = {A: (FailedLoad("w0", NOW - 1.0, "no such operator"),)}
    (move,) = plan(picture(wanted(A), demand={A: waits()}, failures=once), NOW).moves
    assert move.worker == "w1"
    both = {A: (*once[A], FailedLoad("w1", NOW, "no such operator"))}
    decision = plan(picture(wanted(A), demand={A: waits()}, failures=both), NOW)
    (rejection,) = decision.rejected
    assert (rejection.cause, rejection.final, rejection.message) == ("load_failed", True, "no such operator")
    assert rejection.retry_at == NOW - 1.0 + 450.0


def test_at_most_three_workers_are_tried():
    workers = tuple(WorkerView(f"w{number}") for number in range(5))
    failed = tuple(FailedLoad(f"w{number}", NOW, "no") for number in range(3))
    decision = plan(picture(wanted(A), demand={A: waits()}, workers=workers, failures={A: failed}), NOW)
    assert causes(decision) == ["load_failed"]


@pytest.mark.parametrize(("age_s", "demand", "tried"), [(449, True, False), (451, True, True), (451, False, False)])
def test_a_failure_counts_for_fifteen_minutes_and_half_of_it_when_requested(age_s: float, demand: bool, tried: bool):
    failed = {A: tuple(FailedLoad(worker, NOW - age_s, "no") for worker in ("w0", "w1"))}
    wish = wanted(A, minimum=0 if demand else 1)
    decision = plan(picture(wish, demand={A: waits()} if demand else {}, failures=failed), NOW)
    assert (loads(decision) == [A]) is tried


def test_a_failure_that_passes_counts_for_its_own_time():
    failed = {A: tuple(FailedLoad(worker, NOW - 10.0, "the disk is full", 15.0) for worker in ("w0", "w1"))}
    decision = plan(picture(wanted(A), demand={A: waits()}, failures=failed), NOW)
    assert (causes(decision), decision.look_again_at) == (["load_failed"], NOW + 5.0)
    assert loads(plan(picture(wanted(A), demand={A: waits()}, failures=failed), NOW + 5.0)) == [A]


def test_an_isolated_version_leaves_shared_workers_and_asks_for_its_own_process():
    wish = wanted(A, isolated=True)
    decision = plan(picture(wish, copies=(ready(A, "w0"),), demand={A: waits()}), NOW)
    assert unloads(decision) == [A]
    assert [move.key for move in decision.moves if isinstance(move, Dedicate)] == [A]
    assert loads(decision) == []
    workers = (WorkerView("w0"), WorkerView("d0", dedicated=A))
    (move,) = plan(picture(wish, demand={A: waits()}, workers=workers), NOW).moves
    assert move.worker == "d0"


def test_others_do_not_go_into_a_dedicated_process():
    workers = (WorkerView("d0", dedicated=A),)
    decision = plan(picture(wanted(A, isolated=True, minimum=1), wanted(B), demand={B: waits()}, workers=workers), NOW)
    assert loads(decision) == [A]
    assert causes(decision) == ["no_worker"]


@pytest.mark.parametrize("wish", [None, wanted(A), wanted(A, isolated=True)])
def test_a_dedicated_process_that_nothing_needs_is_retired(wish: Wanted | None):
    workers = (WorkerView("w0"), WorkerView("d0", dedicated=A))
    (move,) = plan(picture(*([wish] if wish else []), wanted(B), workers=workers), NOW).moves
    assert isinstance(move, Retire)
    assert move.worker == "d0"


def test_a_dedicated_process_with_a_copy_or_a_wish_stays():
    workers = (WorkerView("d0", dedicated=A),)
    wish = wanted(A, isolated=True)
    assert plan(picture(wish, copies=(ready(A, "d0"),), workers=workers), NOW).moves == ()
    starting = (WorkerView("d0", ready=False, dedicated=A),)
    assert plan(picture(wish, demand={A: waits()}, workers=starting), NOW).moves == ()


def test_a_blocked_version_takes_no_traffic_and_says_for_how_long():
    wish = wanted(A, blocked_until=NOW + 60.0, blocked_why="it ended its worker 5 times")
    decision = plan(picture(wish, copies=(ready(A),), demand={A: waits()}), NOW)
    assert unloads(decision) == [A]
    (rejection,) = decision.rejected
    assert (rejection.cause, rejection.final, rejection.retry_at) == ("crash_loop", True, NOW + 60.0)
    assert rejection.message == "it takes no traffic for 60 s: it ended its worker 5 times"
    assert loads(plan(picture(replace(wish, blocked_until=NOW), demand={A: waits()}), NOW)) == [A]


def test_a_copy_never_used_is_the_first_to_make_room():
    copies = (
        ready(B, memory_bytes=50 * MIB, idle_s=90_000.0),
        ready(C, memory_bytes=50 * MIB, last_used=float("-inf")),
    )
    wishes = [wanted(key, idle_seconds=1e9) for key in (A, B, C)]
    (move,) = plan(picture(*wishes, copies=copies, demand={A: waits()}), NOW).moves
    assert (move.key, move.data["idle_s"]) == (C, 86_400.0)


def test_a_blocked_version_that_is_not_looked_at_now_may_make_room():
    blocked = wanted(B, minimum=1, blocked_until=NOW + 60.0)
    everything = picture(wanted(A), blocked, copies=(ready(B, memory_bytes=95 * MIB),), demand={A: waits()})
    assert unloads(plan(replace(everything, attention=(A,)), NOW)) == [B]
