"""A request through the whole mesh, Envoy and worker on one core: processor time of each, and what one caller waits."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench._cases import FORMATS, Case, cases, write_models
from bench._gateway import run_folder
from bench._h2load import Run, load
from bench._mesh import Mesh, mesh
from bench._models import manifest
from bench._processor import SERVER_CORE, on_cores, processor_time
from bench.figures import Figure

READY_S = 120


def deploy(running: Mesh, models: dict[str, Path]) -> None:
    """Declare the models of the workloads and wait until they are there."""
    running.apply(
        [manifest(name, models[name], minimum=1, trusted=True, **version) for name, version in FORMATS.items()]
    )
    running.wait_ready(len(FORMATS), within_s=READY_S)


class Parts:
    """Measures one run of load, and the processor time of each part of the node during it."""

    def __init__(self, running: Mesh) -> None:
        self._address = running.gateway
        self._parts = running.parts()

    def run(self, case: Case, callers: int, seconds: float) -> tuple[Run, dict[str, float]]:
        """The run, and µs per request by part."""
        before = {part: processor_time(pids) for part, pids in self._parts.items()}
        every = [pid for pids in self._parts.values() for pid in pids]
        run = load(self._address, case.ask, connections=callers, seconds=seconds, pids=every)
        used = {part: processor_time(pids) - before[part] for part, pids in self._parts.items()}
        return run, {part: spent / run.requests * 1e6 for part, spent in used.items()}


def run(quick: bool) -> list[Figure]:
    rounds, seconds = (2, 1.0) if quick else (9, 3.0)
    found: dict[tuple[str, int], list[tuple[Run, dict[str, float]]]] = {}
    with run_folder() as folder, on_cores(SERVER_CORE), mesh("--workers", "1") as running:
        deploy(running, write_models(folder / "models"))
        parts, asked = Parts(running), cases(folder / "bodies")
        small = [(case, callers) for case in asked if case.callers == 32 for callers in (32, 1)]
        every = small + [(case, case.callers) for case in asked if case.callers != 32]
        for case, callers in every:
            parts.run(case, callers, 1)
        for number in range(rounds):
            for case, callers in every if number % 2 == 0 else every[::-1]:
                found.setdefault((case.name, callers), []).append(parts.run(case, callers, seconds))
    return [figure for (name, callers), runs in found.items() for figure in _figures(name, callers, runs)]


def _figures(name: str, callers: int, runs: list[tuple[Run, dict[str, float]]]) -> list[Figure]:
    median = statistics.median
    at = f"{name}, {callers} caller{'s' if callers > 1 else ''}"
    figures = [Figure(at, median(one.cpu_us for one, _ in runs), "us/req", "", None)]
    figures += [
        Figure(f"{at}: {part}", median(used[part] for _, used in runs), "us/req", "", None) for part in runs[0][1]
    ]
    if callers == 1:
        figures.append(Figure(f"{at}: p50", median(one.p50_ms for one, _ in runs), "ms", "", None))
    return figures
