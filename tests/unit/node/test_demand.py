"""Who waits for what is counted exactly, whatever order they come and go in."""

from __future__ import annotations

from msm.kit.errors import LoadFailed
from msm.node.demand import Demands
from msm.resources.meta import ObjectKey
from msm.resources.serving import VersionKey

KEY = VersionKey("default", "iris", "v1")
MODEL = ObjectKey("Model", "default", "iris")


async def test_waiters_share_one_outcome_and_the_oldest_gives_the_time():
    demands = Demands()
    first, second = demands.join(KEY, 5.0), demands.join(KEY, 9.0)
    assert first is second
    assert (demands.by_key[KEY].waiting, demands.by_key[KEY].since) == (2, 5.0)
    demands.leave(KEY, first)
    assert demands.by_key[KEY].waiting == 1
    assert demands.settle(KEY) == 1
    assert first.result() is None
    assert demands.by_key == {}
    assert demands.waiting() == []


async def test_who_leaves_after_the_end_does_not_disturb_the_next_wait():
    demands = Demands()
    old = demands.join(KEY, 1.0)
    error = LoadFailed("no")
    demands.settle(KEY, error)
    new = demands.join(KEY, 2.0)
    demands.leave(KEY, old)
    assert demands.by_key[KEY].waiting == 1
    assert old.result() is error
    assert not new.done()
    demands.leave(KEY, new)
    assert demands.by_key == {}
    assert demands.settle(KEY) == 0


async def test_what_is_to_be_kept_warm_outlives_the_waiters_until_its_time():
    demands = Demands()
    demands.keep(KEY, 2, until=100.0)
    outcome = demands.join(KEY, 5.0)
    demands.leave(KEY, outcome)
    assert (demands.by_key[KEY].keep, demands.by_key[KEY].waiting) == (2, 0)
    demands.tidy(99.0)
    assert KEY in demands.by_key
    demands.tidy(100.0)
    assert demands.by_key == {}


async def test_wishes_of_those_who_wait_are_never_tidied_away():
    demands = Demands()
    outcome = demands.join(KEY, 5.0)
    demands.tidy(1e9)
    assert KEY in demands.by_key
    demands.leave(KEY, outcome)


def test_a_queue_is_counted_by_model():
    demands = Demands()
    for _ in range(3):
        demands.enqueue(MODEL, 1)
    demands.enqueue(MODEL, -1)
    assert (demands.queued(MODEL), demands.total()) == (2, 2)
    demands.enqueue(MODEL, -1)
    demands.enqueue(MODEL, -1)
    assert (demands.queued(MODEL), demands.total()) == (0, 0)
