"""The worker alone on its unix socket: processor time per request, against the model's own call and a bare answer."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

from bench._cases import FORMATS, JSON, Case, cases, write_models
from bench._gateway import run_folder, upstream
from bench._h2load import Ask, Run, load
from bench._limits import limits
from bench._processor import SERVER_CORE, on_cores
from bench._worker import UnixConnection, Worker, worker
from bench.figures import Figure

GOALS_US = {"tiny ONNX network, REST JSON": 25.0}


def answer_size(running: Worker, case: Case) -> int:
    """Bytes of one answer, after a look at what it says. Raises RuntimeError when it is no inference answer."""
    connection = UnixConnection(running.data)
    body = case.ask.body.read_bytes()
    status, said = connection.post(case.ask.path, body, dict(case.ask.headers))
    connection.close()
    plain = case.ask.body.suffix != ".grpc"
    if status != 200 or not said or (plain and not said.startswith(b'{"model_name"')):
        raise RuntimeError(f"{case.name}: {status} {said[:300]!r}")
    return len(said)


def check_answers(case: Case, run: Run, size: int) -> None:
    """Raises RuntimeError when answers are not of that size; some are under way when time is counted."""
    if abs(run.answer_bytes - size) * run.requests > size * (case.callers + run.requests // 100):
        raise RuntimeError(f"{case.name}: answers of {run.answer_bytes:.0f} bytes, not {size}")


def measure(folder: Path, models: dict[str, Path], rounds: int, seconds: float) -> dict[str, list[Run]]:
    """Runs by case; in every round each case once, the bare answer too."""
    found: dict[str, list[Run]] = {}
    with contextlib.ExitStack() as started:
        with on_cores(SERVER_CORE):
            socket, bare_pid = started.enter_context(upstream(folder))
        running = started.enter_context(worker(folder))
        for name, version in FORMATS.items():
            running.load(name, models[name], **version)
        asked = [case.on_worker() for case in cases(folder / "bodies")]
        sizes = {case.name: answer_size(running, case) for case in asked}
        for case in asked:
            load(running.address, case.ask, connections=case.callers, seconds=1, pids=running.pids)
        for number in range(rounds):
            for case in asked if number % 2 == 0 else asked[::-1]:
                run = load(running.address, case.ask, connections=case.callers, seconds=seconds, pids=running.pids)
                check_answers(case, run, sizes[case.name])
                found.setdefault(case.name, []).append(run)
            ask = Ask("/v2/models/bare/infer", asked[0].ask.body, JSON)
            run = load(f"unix:{socket}", ask, connections=32, seconds=seconds, pids=[bare_pid])
            found.setdefault("bare uvloop answer", []).append(run)
            run = load(running.address, asked[0].ask, connections=1, seconds=seconds, pids=running.pids)
            found.setdefault("tiny ONNX network, REST JSON, 1 caller", []).append(run)
    return found


def run(quick: bool) -> list[Figure]:
    rounds, seconds = (3, 1.0) if quick else (9, 3.0)
    with run_folder() as folder:
        models = write_models(folder / "models")
        found = measure(folder, models, rounds, seconds)
        least = limits(models)
    figures = []
    for name, runs in found.items():
        goal = GOALS_US.get(name)
        us = statistics.median(one.cpu_us for one in runs)
        met = None if goal is None else us <= goal
        figures.append(Figure(name, us, "us/req", "" if goal is None else f"<= {goal:g}", met))
    tiny, bare = found["tiny ONNX network, REST JSON"], found["bare uvloop answer"]
    lowest = min(one.cpu_us for one in tiny)
    figures += [
        Figure("tiny ONNX network, REST JSON, lowest round", lowest, "us/req", "", None),
        Figure("the same beyond the bare answer of its round", _beyond(tiny, bare), "us/req", "", None),
        Figure("the same, requests", statistics.median(one.per_second for one in tiny), "req/s", "", None),
        Figure("the same, p99", statistics.median(one.p99_ms for one in tiny), "ms", "", None),
        *(Figure(f"limit: {name}", us, "us/call", "", None) for name, us in least.items()),
    ]
    return figures


def _beyond(runs: list[Run], bare: list[Run]) -> float:
    return statistics.median(one.cpu_us - other.cpu_us for one, other in zip(runs, bare, strict=True))
