import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.kit.clock import ManualClock, SystemClock, settle
from msm.kit.nearest import hint, nearest
from msm.kit.tasks import Tasks, backoff_s


async def test_a_manual_clock_wakes_sleepers_in_the_order_of_their_deadlines():
    clock, woken = ManualClock(), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2):
            group.create_task(sleeper(seconds))
        await settle()
        await clock.advance(1.5)
        assert woken == [(1, 1001)]
        await clock.advance(10)
    assert woken == [(1, 1001), (2, 1002), (3, 1003)]
    assert clock.wall() == 1011.5


async def test_the_system_clock_never_runs_backwards():
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() >= before + 0.001
    assert clock.wall() > 1_600_000_000


async def test_a_failing_task_is_reported_by_name_and_does_not_end_the_others():
    failures: list[tuple[str, str]] = []
    done = asyncio.Event()

    async def fails() -> None:
        raise ValueError("boom")

    async def goes_on() -> None:
        await settle()
        done.set()

    async with Tasks(lambda name, error: failures.append((name, str(error)))) as tasks:
        tasks.start("bad", fails())
        tasks.start("good", goes_on())
        await done.wait()
    assert failures == [("bad", "boom")]


async def test_closing_the_owner_ends_its_tasks_and_refuses_new_ones():
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    tasks = Tasks(lambda name, error: None)
    tasks.start("waits", waits())
    await settle()
    await tasks.close()
    assert ended == ["waits"]
    with pytest.raises(RuntimeError, match="'late' was started while its owner is closing"):
        tasks.start("late", waits())


@given(st.integers(0, 10_000))
def test_backoff_never_shrinks_and_never_passes_its_bound(attempt: int):
    assert backoff_s(attempt) <= backoff_s(attempt + 1) <= 10.0


def test_nearest_names_come_best_first_and_unlike_names_do_not_come():
    assert nearest("irs", ["iris", "digits", "iris2"]) == ("iris", "iris2")
    assert nearest("zzz", ["iris", "digits"]) == ()
    assert hint(("iris", "iris2")) == "; did you mean 'iris' or 'iris2'?"
    assert hint(()) == ""
