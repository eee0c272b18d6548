"""What holds for every picture, however odd."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from msm.planning.moves import Load, Unload
from msm.planning.picture import CopyView, Demand, FailedLoad, Picture, Wanted, WorkerView, with_sums
from msm.planning.residency import plan
from msm.resources.serving import VersionKey

NOW = 1_000.0
KEYS = [VersionKey("default", f"m{number}", "v1") for number in range(8)]
WORKERS = ["w0", "w1", "w2"]


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    capacity = draw(st.integers(10, 100))
    copies: dict[VersionKey, tuple[CopyView, ...]] = {}
    used = 0
    for key in draw(st.lists(st.sampled_from(KEYS), unique=True)):
        for worker in draw(st.lists(st.sampled_from(WORKERS), unique=True, min_size=1)):
            memory = draw(st.integers(1, 30))
            if used + memory > capacity:
                continue
            used += memory
            copy = CopyView(
                key=key,
                worker=worker,
                state=draw(st.sampled_from(["Loading", "Ready", "Ready", "Ready", "Draining", "Unloading"])),
                memory_bytes=memory,
                in_flight=draw(st.sampled_from([0, 0, 0, 3])),
                last_used=NOW - draw(st.floats(0, 2000)),
                ready_since=NOW - draw(st.floats(0, 100)),
                load_seconds=draw(st.floats(0, 10)),
            )
            copies[key] = (*copies.get(key, ()), copy)
    wishes = {
        key: Wanted(
            key=key,
            minimum=draw(st.integers(0, 3)),
            maximum=3,
            idle_seconds=draw(st.sampled_from([1.0, 900.0])),
            memory_bytes=draw(st.integers(1, 40)),
            isolated=draw(st.sampled_from([False, False, True])),
        )
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True))
    }
    demand = {
        key: Demand(waiting=draw(st.integers(0, 5)), since=NOW, keep=draw(st.integers(0, 2)), keep_until=NOW + 1)
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True))
    }
    failures = {
        key: (FailedLoad(draw(st.sampled_from(WORKERS)), NOW - draw(st.floats(0, 1000)), "no"),)
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True))
    }
    ready = st.sampled_from([True, True, False])
    workers = tuple(WorkerView(worker, ready=draw(ready)) for worker in WORKERS)
    return with_sums(Picture(capacity, 0, workers, copies, wishes, (), demand, failures))


@given(pictures())
@settings(max_examples=120, deadline=None)
def test_no_plan_breaks_a_rule(picture: Picture):
    decision = plan(picture, NOW)
    new = [move for move in decision.moves if isinstance(move, Load)]
    gone = [move for move in decision.moves if isinstance(move, Unload)]
    assert picture.used_bytes + sum(move.memory_bytes for move in new) <= max(
        picture.capacity_bytes, picture.used_bytes
    )
    living = {worker.id for worker in picture.workers if worker.ready}
    places = [(copy.key, copy.worker) for held in picture.copies.values() for copy in held]
    for move in new:
        assert move.worker in living
        assert (move.key, move.worker) not in places, "one copy of a version in a worker"
        places.append((move.key, move.worker))
        assert move.reason
    assert len({(move.key, move.worker) for move in gone}) == len(gone), "nothing is unloaded twice"
    for move in gone:
        copy = next(copy for copy in picture.copies[move.key] if copy.worker == move.worker)
        assert copy.state == "Ready"
        if "makes room" in move.reason:
            _may_make_room(picture, copy, gone)
    assert decision.look_again_at is None or decision.look_again_at > NOW - 1000


def _may_make_room(picture: Picture, copy: CopyView, gone: list[Unload]) -> None:
    assert not copy.in_flight
    assert NOW - copy.ready_since >= max(10 * copy.load_seconds, 1.0) - 1e-6
    wish = picture.wanted.get(copy.key)
    left = sum(c.state == "Ready" for c in picture.copies[copy.key]) - sum(m.key == copy.key for m in gone)
    minimum = 0 if wish is None else min(wish.minimum, 1 if wish.isolated else wish.maximum)
    ready_before = sum(c.state == "Ready" for c in picture.copies[copy.key])
    assert left >= min(minimum, ready_before)


@given(pictures())
@settings(max_examples=30, deadline=None)
def test_the_same_picture_gives_the_same_plan(picture: Picture):
    assert plan(picture, NOW) == plan(picture, NOW)
