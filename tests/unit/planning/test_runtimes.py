"""Versions of external servers in a residency plan."""

from __future__ import annotations

from dataclasses import replace

from msm.planning.moves import Dedicate, Load, Open, Retire
from msm.planning.picture import CopyView, Demand, Picture, Wanted, WorkerView
from msm.planning.residency import plan
from msm.resources.serving import VersionKey

NOW = 1000.0
KEY = VersionKey("default", "iris", "v1")
OTHER = VersionKey("default", "other", "v1")
SERVER = WorkerView("r0", runtime="default/mlserver", keep_s=60.0)
BUILT_IN = WorkerView("w0")
WANTED = Wanted(KEY, memory_bytes=10, runtime="default/mlserver")


def picture(*workers: WorkerView, wanted: Wanted = WANTED, waiting: int = 1) -> Picture:
    return Picture(
        capacity_bytes=100,
        used_bytes=0,
        workers=workers,
        copies={},
        wanted={wanted.key: wanted},
        attention=[wanted.key],
        demand={wanted.key: Demand(waiting=waiting, since=NOW)} if waiting else {},
    )


def test_the_first_need_starts_the_servers_and_goes_on_waiting():
    decision = plan(picture(BUILT_IN), NOW)
    assert decision.moves == (Open("default/mlserver", f"{KEY} needs it"),)
    assert [(r.cause, r.final) for r in decision.rejected] == [("no_worker", False)]


def test_servers_that_are_starting_are_not_started_again():
    assert plan(picture(BUILT_IN, replace(SERVER, ready=False)), NOW).moves == ()


def test_two_versions_start_the_servers_once():
    both = picture(BUILT_IN)
    other = replace(WANTED, key=OTHER)
    both = replace(
        both,
        wanted={**both.wanted, OTHER: other},
        attention=[KEY, OTHER],
        demand={**both.demand, OTHER: Demand(waiting=1, since=NOW)},
    )
    assert [type(move) for move in plan(both, NOW).moves] == [Open]


def test_a_server_that_cannot_be_started_is_told_to_who_waits():
    decision = plan(picture(replace(SERVER, ready=False, fault="no such program")), NOW)
    (rejection,) = decision.rejected
    assert rejection.final
    assert "no such program" in rejection.message


def test_a_version_goes_to_its_own_runtime_only():
    (move,) = plan(picture(BUILT_IN, WorkerView("r1", runtime="default/triton"), SERVER), NOW).moves
    assert isinstance(move, Load)
    assert move.worker == "r0"
    (move,) = plan(picture(BUILT_IN, SERVER, wanted=replace(WANTED, runtime="")), NOW).moves
    assert isinstance(move, Load)
    assert move.worker == "w0"


def test_copies_are_bounded_by_the_servers_of_the_runtime():
    many = picture(BUILT_IN, WorkerView("w1"), SERVER, wanted=replace(WANTED, minimum=3, maximum=3), waiting=0)
    assert [type(move) for move in plan(many, NOW).moves] == [Load]


def test_an_isolated_version_gets_a_server_of_its_runtime():
    moves = plan(picture(SERVER, wanted=replace(WANTED, isolated=True)), NOW).moves
    assert moves == (Dedicate(KEY, "it ended its worker twice within a minute", "default/mlserver"),)


def test_an_empty_server_is_kept_for_a_while_and_then_ended():
    idle = picture(replace(SERVER, empty_since=NOW - 59), waiting=0)
    assert plan(idle, NOW).moves == ()
    assert plan(idle, NOW).look_again_at == NOW + 1
    assert plan(idle, NOW + 1).moves == (Retire("r0", "it held no model for 60 s"),)


def test_an_empty_server_that_somebody_waits_for_stays():
    (move,) = plan(picture(replace(SERVER, empty_since=NOW - 99)), NOW).moves
    assert isinstance(move, Load)
    unseen = replace(picture(replace(SERVER, empty_since=NOW - 99)), attention=[])
    assert plan(unseen, NOW).moves == ()


def test_a_server_with_a_copy_stays():
    held = replace(picture(SERVER, waiting=0), copies={KEY: (CopyView(KEY, "r0", "Ready", 10, last_used=NOW),)})
    assert plan(held, NOW + 1).moves == ()
