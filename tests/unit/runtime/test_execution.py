"""How a version is run is chosen from what its runs cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.runtime.execution import Bounds, Profile, choose

BOUNDS = Bounds(rows=64, concurrency=4, may_block=False)


def learnt(*runs: tuple[int, float], times: int = 10, waits_s: float | None = None) -> Profile:
    profile = Profile()
    for _ in range(times):
        for rows, seconds in runs:
            profile.learn(rows, seconds, None if waits_s is None else seconds + waits_s)
    return profile


def test_what_was_never_measured_runs_in_a_thread():
    assert choose(Profile(), BOUNDS).where == "thread"


@pytest.mark.parametrize(("seconds", "where"), [(1e-5, "loop"), (9e-4, "loop"), (2e-3, "thread"), (1.0, "thread")])
def test_fast_runs_are_done_on_the_loop(seconds: float, where: str):
    assert choose(Profile(seconds), BOUNDS).where == where
    assert choose(learnt((1, seconds)), BOUNDS).where == where


def test_code_that_may_block_never_runs_on_the_loop():
    assert choose(learnt((1, 1e-6)), Bounds(64, 1, may_block=True)).where == "thread"


def test_one_very_slow_run_is_enough_to_leave_the_loop():
    profile = learnt((1, 1e-5))
    profile.learn(1, 0.5)
    assert choose(profile, BOUNDS).where == "thread"


def test_batches_stay_large_while_a_row_costs_less_in_them():
    assert choose(learnt((1, 5e-3), (8, 5e-3), (64, 5e-3)), BOUNDS).rows == 64


def test_batches_are_cut_where_rows_cost_no_less():
    chosen = choose(learnt((1, 1e-3), (8, 4e-3), (64, 32e-3)), BOUNDS)
    assert chosen.rows == 15
    assert "over 15" in chosen.why


def test_larger_batches_are_tried_again_now_and_then():
    profile = learnt((1, 1e-3), (8, 8e-3), times=128)
    assert profile.runs == 256
    assert choose(profile, BOUNDS).rows == 64
    profile.learn(1, 1e-3)
    assert choose(profile, BOUNDS).rows == 1


def test_a_size_that_was_run_seldom_decides_nothing():
    assert choose(learnt((1, 1e-3), (8, 8e-3), times=4), BOUNDS).rows == 64


def test_a_model_that_waits_runs_several_times_at_once_up_to_what_is_declared():
    profile = learnt((1, 1e-3), times=30, waits_s=0.1)
    assert choose(profile, BOUNDS).concurrency == 4
    assert choose(profile, Bounds(64, 1, may_block=False)).concurrency == 1


def test_a_model_that_computes_runs_once_at_a_time():
    assert choose(learnt((1, 0.05), times=30, waits_s=0.01), BOUNDS).concurrency == 1


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.floats(0, 100), st.none() | st.floats(0, 100)), max_size=60))
def test_whatever_was_measured_the_choice_keeps_within_its_bounds(runs: list[tuple[int, float, float | None]]):
    profile = Profile()
    for rows, computed_s, elapsed_s in runs:
        profile.learn(rows, computed_s, elapsed_s)
    chosen = choose(profile, BOUNDS)
    assert 1 <= chosen.rows <= BOUNDS.rows
    assert 1 <= chosen.concurrency <= BOUNDS.concurrency
    assert chosen.why
    assert "\n" not in str(chosen)
