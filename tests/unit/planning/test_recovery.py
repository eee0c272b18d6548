"""What follows from crashes and hangs."""

from __future__ import annotations

import pytest

from msm.planning.recovery import Crash, blame, ending, forget, hangs, judge, refuse_replay, restart
from msm.resources.serving import VersionKey

NOW = 10_000.0


def crashes(*ages_s: float, certain: bool = True) -> tuple[Crash, ...]:
    return tuple(Crash(NOW - age, certain) for age in sorted(ages_s, reverse=True))


@pytest.mark.parametrize(
    ("in_a_row", "lived_s", "delay_s", "row"),
    [(0, 5.0, 0.0, 1), (1, 5.0, 0.1, 2), (2, 5.0, 0.2, 3), (5, 0.1, 1.6, 6), (40, 0.1, 10.0, 41), (40, 60.0, 0.0, 1)],
)
def test_a_worker_starts_again_at_once_then_with_growing_pauses(
    in_a_row: int, lived_s: float, delay_s: float, row: int
):
    decision = restart(in_a_row, lived_s)
    assert decision.delay_s == pytest.approx(delay_s)
    assert decision.in_a_row == row


def test_the_versions_in_the_black_box_are_the_suspects():
    guilt = blame(["default/a/v1", "default/a/v1"], "crashed")
    assert guilt.suspects == (VersionKey("default", "a", "v1"),)
    assert guilt.certain
    assert not blame(["default/b/v1", "default/a/v1"], "crashed").certain
    assert blame(["torn", "a/b/c/d"], "crashed").suspects == ()


@pytest.mark.parametrize(
    ("seen", "isolated", "blocked"),
    [
        (crashes(), False, False),
        (crashes(5), False, False),
        (crashes(5, 64), True, False),
        (crashes(5, 66), False, False),
        (crashes(100, 130, 890), True, False),
        (crashes(901, 905), False, False),
        (crashes(1600, 1601), False, False),
        (crashes(1, 100, 200, 300, 400), True, True),
        (crashes(800, 900, 1000, 1100, 1200), True, True),
        (crashes(1, 100, 200, 300, 400, certain=False), False, False),
        (crashes(1, 2, 3, 4, 5, certain=False), True, False),
        (crashes(1, 100, 200, 300, 602), False, False),
    ],
)
def test_crashes_close_together_isolate_and_block(seen: tuple[Crash, ...], isolated: bool, blocked: bool):
    verdict = judge(seen, NOW)
    assert (verdict.isolated, verdict.blocked_until is not None) == (isolated, blocked)


def test_five_crashes_within_ten_minutes_block_for_fifteen():
    verdict = judge(crashes(1, 100, 200, 300, 400), NOW)
    assert verdict.blocked_until == NOW - 1 + 900
    assert verdict.look_again_at == verdict.blocked_until
    assert verdict.reason == "it ended its worker 5 times within 10 minutes"


def test_a_verdict_ends_by_itself():
    seen = crashes(1, 2, 3, 4, 5)
    assert judge(seen, NOW + 898.0).blocked_until is not None
    assert judge(seen, NOW + 900.0) == judge((), NOW)
    assert forget(seen, NOW + 1497.5) == seen[3:]


def test_isolation_says_when_it_ends():
    assert judge(crashes(10, 40), NOW).look_again_at == NOW - 10 + 900


def test_silence_and_endless_calls_are_hangs():
    assert not hangs(1.9, (), 2.0).hangs
    silent = hangs(2.1, (), 2.0)
    assert (silent.hangs, silent.reason) == (True, "it did not answer for 2.1 s (limit 2.0 s)")
    stuck = hangs(0.0, ["default/b/v1", "default/a/v1"], 2.0)
    assert (stuck.hangs, stuck.reason) == (True, "a call of default/a/v1, default/b/v1 does not end")


@pytest.mark.parametrize(
    ("status", "condemned", "memory_ran_out", "how"),
    [
        (-11, False, False, "crashed"),
        (3, False, False, "crashed"),
        (-9, True, False, "hung"),
        (-9, False, False, "killed"),
        (-9, False, True, "out_of_memory"),
        (None, False, False, "unknown"),
    ],
)
def test_how_a_worker_ended_is_told_from_its_status(status, condemned, memory_ran_out, how):
    assert ending(status, condemned=condemned, memory_ran_out=memory_ran_out) == how


def test_nobody_is_blamed_for_a_kill_from_outside_and_nobody_surely_when_it_is_unknown():
    assert blame(["default/a/v1"], "killed").suspects == ()
    assert not blame(["default/a/v1"], "unknown").certain
    assert not blame(["default/a/v1"], "out_of_memory").certain


def test_a_request_is_sent_again_unless_its_version_is_to_blame():
    sure, perhaps = Crash(95.0, certain=True), Crash(95.0, certain=False)
    assert refuse_replay((), 3, 100.0) is None
    assert refuse_replay((), 4, 100.0) == "4 workers died while it was answered"
    assert refuse_replay((sure,), 1, 100.0) is None
    assert refuse_replay((sure, sure), 1, 100.0) == "it ended its worker 2 times within 60 s"
    assert refuse_replay((perhaps, perhaps), 2, 100.0) is None
    assert refuse_replay((perhaps, perhaps, perhaps), 2, 100.0) == "it ended its worker 3 times within 60 s"
    assert refuse_replay((sure, sure), 1, 200.0) is None
