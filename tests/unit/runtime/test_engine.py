"""How a version is run: batches, isolation, limits, time-outs, draining. A model here is a plain function."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msm.kit.errors import DeadlineExceeded, Internal, MsmError, Overloaded, Unavailable
from msm.runtime import blackbox
from msm.runtime.batching import Limits, Outputs
from msm.runtime.blackbox import BlackBox
from msm.runtime.engine import Engine, Settings, Shell
from msm.runtime.lag import LagMeter
from msm.runtime.protocols.call import DEFAULT_PRIORITY
from msm.runtime.protocols.tensors import Array
from msm.runtime.signature import Signature, Tensor
from msm.runtime.threads import Threads
from msm.runtime.waiting import Job
from tests.support.eventually import eventually

SIGNATURE = Signature((Tensor("x", "FP64", (-1, 1)),), (Tensor("y", "FP64", (-1,)),))
FAST = 1e-6


class Model:
    exact_outputs = True
    accepts: frozenset[str] = frozenset()

    def __init__(
        self, predict: Callable[[Array], Any], signature: Signature = SIGNATURE, *, may_block: bool = False
    ) -> None:
        self.signature = signature
        self.may_block = may_block
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self._predict = predict

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        self.batches.append(len(inputs["x"]))
        self.threads.add(threading.current_thread().name)
        return {"y": self._predict(inputs["x"][:, 0])}


class Ask(Job):
    __slots__ = ("answer", "gone")

    def __init__(self, *values: float, priority: int = DEFAULT_PRIORITY) -> None:
        super().__init__({"x": np.array(values, np.float64).reshape(-1, 1)}, priority)
        self.answer: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self.gone = False

    @property
    def abandoned(self) -> bool:
        return self.gone

    def succeed(self, outputs: Outputs) -> None:
        self.answer.set_result(outputs["y"][1].tolist())

    def fail(self, error: MsmError) -> None:
        self.answer.set_exception(error)


Make = Callable[..., Engine]


@pytest.fixture
async def make(tmp_path: Path) -> Make:
    shell = Shell(
        asyncio.get_running_loop(),
        Threads(2, "predict"),
        BlackBox(tmp_path / "box"),
        LagMeter(asyncio.get_running_loop()),
    )
    return lambda model, **settings: Engine("default/m/v1", model, Settings(**settings), shell)


def same(values: Array) -> Array:
    return values


async def ask(engine: Engine, *values: float) -> list[float]:
    job = Ask(*values)
    engine.submit(job)
    return await job.answer


async def test_requests_of_one_turn_of_the_loop_are_one_batch(make: Make) -> None:
    model = Model(same)
    engine = make(model, predict_s=FAST)
    assert await asyncio.gather(*(ask(engine, value, value + 1) for value in range(5))) == [
        [value, value + 1] for value in range(5)
    ]
    assert model.batches == [10]
    assert model.threads == {"MainThread"}


async def test_the_limit_of_rows_cuts_batches_and_a_larger_request_runs_alone(make: Make) -> None:
    model = Model(same)
    engine = make(model, predict_s=FAST, limits=Limits(rows=4))
    await asyncio.gather(*(ask(engine, 1) for _ in range(6)), ask(engine, *range(9)))
    assert model.batches == [4, 2, 9]


async def test_without_batching_each_request_runs_alone(make: Make) -> None:
    model = Model(same)
    engine = make(model, predict_s=FAST, batching=False)
    await asyncio.gather(*(ask(engine, 1) for _ in range(3)))
    assert model.batches == [1, 1, 1]


async def test_a_bad_request_of_a_batch_fails_alone(make: Make) -> None:
    def predict(values: Array) -> Array:
        if (values < 0).any():
            raise ValueError("below zero")
        return values

    engine = make(Model(predict), predict_s=FAST)
    answers = await asyncio.gather(ask(engine, 1), ask(engine, -1), ask(engine, 3), return_exceptions=True)
    assert answers[0] == [1]
    assert answers[2] == [3]
    assert isinstance(answers[1], Internal)
    assert (answers[1].reason, answers[1].message) == ("model_error", "the model raised ValueError: below zero")
    assert (engine.counters.requests, engine.counters.failures, engine.counters.in_flight) == (3, 1, 0)


async def test_a_model_that_cannot_take_batches_gets_single_requests_after_a_while(make: Make) -> None:
    def predict(values: Array) -> Array:
        if len(values) > 1:
            raise ValueError("one at a time")
        return values

    model = Model(predict)
    engine = make(model, predict_s=FAST)
    for _ in range(4):
        assert await asyncio.gather(ask(engine, 1), ask(engine, 2)) == [[1], [2]]
    assert model.batches == [2, 1, 1] * 3 + [1, 1]


async def test_no_rows_are_answered_without_the_model(make: Make) -> None:
    model = Model(same)
    assert await ask(make(model, predict_s=FAST)) == []
    assert model.batches == []


async def test_an_unknown_or_blocking_model_runs_in_a_thread_until_it_is_known_to_be_fast(make: Make) -> None:
    unknown, blocking = Model(same), Model(same, may_block=True)
    for model in (unknown, blocking):
        engine = make(model)
        for _ in range(3):
            await ask(engine, 1)
    assert unknown.threads == {"predict-1", "MainThread"}
    assert "MainThread" not in blocking.threads


async def test_what_arrives_while_the_model_is_busy_is_the_next_batch(make: Make) -> None:
    gate = threading.Event()

    def predict(values: Array) -> Array:
        gate.wait(10)
        return values

    model = Model(predict, may_block=True)
    engine = make(model)
    first = asyncio.ensure_future(ask(engine, 0))
    await eventually(lambda: model.batches == [1])
    rest = [asyncio.ensure_future(ask(engine, value)) for value in range(5)]
    await eventually(lambda: engine.queued == 5)
    gate.set()
    assert await first == [0]
    assert await asyncio.gather(*rest) == [[value] for value in range(5)]
    assert model.batches == [1, 5]


async def test_a_full_queue_refuses(make: Make) -> None:
    engine = make(Model(same), max_queue=2, predict_s=FAST)
    jobs = [Ask(1), Ask(2)]
    for job in jobs:
        engine.submit(job)
    with pytest.raises(Overloaded) as refused:
        engine.submit(Ask(3))
    assert refused.value.reason == "queue_full"
    assert [await job.answer for job in jobs] == [[1], [2]]


async def test_abandoned_requests_are_not_run(make: Make) -> None:
    model = Model(same)
    engine = make(model, predict_s=FAST)
    left, stayed = Ask(1), Ask(2)
    engine.submit(left)
    engine.submit(stayed)
    left.gone = True
    assert await stayed.answer == [2]
    assert model.batches == [1]
    assert engine.counters.in_flight == 0
    left.answer.cancel()


async def test_a_stuck_run_fails_its_requests_marks_the_version_and_frees_the_thread(make: Make) -> None:
    gate = threading.Event()

    def predict(values: Array) -> Array:
        if values[0] < 0:
            gate.wait(20)
        return values

    engine = make(Model(predict, may_block=True), timeout_s=0.1)
    with pytest.raises(DeadlineExceeded):
        await ask(engine, -1)
    await eventually(lambda: engine.state == "HUNG")
    with pytest.raises(Unavailable):
        engine.submit(Ask(1))
    assert engine.counters.failures == 1
    gate.set()
    await eventually(lambda: engine.state == "READY")
    assert await ask(engine, 5) == [5]


async def test_a_waiting_request_is_told_when_its_time_is_over(make: Make) -> None:
    gate = threading.Event()

    def predict(values: Array) -> Array:
        gate.wait(20)
        return values

    engine = make(Model(predict, may_block=True))
    running = asyncio.ensure_future(ask(engine, 1))
    await eventually(lambda: engine.counters.in_flight == 1)
    late = Ask(2)
    engine.submit(late, timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        await late.answer
    assert engine.queued == 0
    gate.set()
    assert await running == [1]


async def test_draining_refuses_new_requests_and_ends_with_the_last_answer(make: Make) -> None:
    gate = threading.Event()

    def predict(values: Array) -> Array:
        gate.wait(20)
        return values

    engine = make(Model(predict, may_block=True))
    running = asyncio.ensure_future(ask(engine, 1))
    await eventually(lambda: engine.counters.in_flight == 1)
    draining = asyncio.ensure_future(engine.drain(10))
    await eventually(lambda: engine.state == "UNLOADING")
    with pytest.raises(Unavailable):
        engine.submit(Ask(2))
    assert not draining.done()
    gate.set()
    await draining
    assert await running == [1]


async def test_draining_ends_after_its_time_and_fails_the_rest(make: Make) -> None:
    gate = threading.Event()

    def predict(values: Array) -> Array:
        gate.wait(20)
        return values

    engine = make(Model(predict, may_block=True))
    jobs = [Ask(1)]
    engine.submit(jobs[0])
    await eventually(lambda: engine.queued == 0)
    jobs.append(Ask(2))
    engine.submit(jobs[1])
    await engine.drain(0.01)
    for job in jobs:
        with pytest.raises(Unavailable):
            await job.answer
    gate.set()
    assert engine.close() is not None


async def test_the_black_box_names_what_runs(make: Make, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def predict(values: Array) -> Array:
        seen.append(blackbox.read(tmp_path / "box"))
        return values

    for settings in ({"predict_s": FAST}, {}):
        await ask(make(Model(predict), **settings), 1)
    assert seen == [["default/m/v1"]] * 2
    assert blackbox.read(tmp_path / "box") == []


def test_the_black_box_has_64_slots_of_256_bytes(tmp_path: Path) -> None:
    path = tmp_path / "box"
    box = BlackBox(path)
    slots = [box.enter_target(f"default/m{index}/v1") for index in range(64)]
    assert box.enter_target("default/more/v1") is None
    box.leave(None)
    assert path.stat().st_size == 64 * 256
    assert len(blackbox.read(path)) == 64
    for slot in slots:
        box.leave(slot)
    assert path.read_bytes() == bytes(64 * 256)


async def test_a_thread_that_ends_by_an_exit_tells_its_caller() -> None:
    threads = Threads(1, "t")

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        await threads.call(leave)
    assert await threads.call(lambda: 5) == 5


async def test_a_thread_written_off_is_replaced() -> None:
    threads, gate = Threads(1, "t"), threading.Event()
    stuck = asyncio.ensure_future(threads.call(lambda: gate.wait(10)))
    waiting = asyncio.ensure_future(threads.call(lambda: 5))
    await asyncio.sleep(0)
    assert not waiting.done()
    threads.write_off()
    assert await waiting == 5
    gate.set()
    assert await stuck


async def test_the_urgent_are_run_first_and_equals_in_the_order_they_came(make: Make) -> None:
    order: list[float] = []
    engine = make(Model(lambda values: order.extend(values) or values), predict_s=FAST, batching=False)
    jobs = [Ask(value, priority=priority) for value, priority in ((1, 5), (2, 9), (3, 5), (4, 1), (5, 1))]
    for job in jobs:
        engine.submit(job)
    await asyncio.gather(*(job.answer for job in jobs))
    assert order == [4, 5, 1, 3, 2]


async def test_a_full_queue_gives_up_the_least_urgent_for_a_more_urgent_one(make: Make) -> None:
    engine = make(Model(same), predict_s=FAST, max_queue=2)
    waiting, least, urgent = Ask(1), Ask(2, priority=9), Ask(3, priority=1)
    engine.submit(waiting)
    engine.submit(least)
    engine.submit(urgent)
    with pytest.raises(Overloaded):
        await least.answer
    assert [await urgent.answer, await waiting.answer] == [[3], [1]]
    assert engine.counters.in_flight == 0
