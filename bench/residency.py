"""Many small models in one worker: time and memory of one more, and what is left after 1,000 loads and unloads."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench._cases import LAYERS, fit_iris, store
from bench._gateway import run_folder
from bench._models import write_network
from bench._processor import processor_time, pss_bytes
from bench._worker import Worker, worker
from bench.figures import Figure

TIMED = 21
SETTLED = 200  # cycles after which the allocator has what it needs
FAST_MS, GROWTH = 5.0, 0.05
# What the best peers take for one more model in the same process (MiB).
PEER_MIB = {"onnx": 0.16, "sklearn": 0.014}


def networks(folder: Path, count: int) -> list[Path]:
    """Different networks of the size of the tiny one."""
    folder.mkdir(parents=True)
    return [write_network(folder / f"n{seed:05d}.onnx", seed, LAYERS) for seed in range(count)]


def classifiers(folder: Path, count: int, suffix: str = ".skops") -> list[Path]:
    """Different classifiers of the size of the one of the workloads, stored by skops or joblib."""
    folder.mkdir(parents=True)
    fitted = fit_iris()
    paths = [folder / f"c{number:05d}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        fitted.coef_[0, 0] += number
        store(fitted, path)
    return paths


def load_ms(running: Worker, prefix: str, paths: list[Path], form: str) -> float:
    """The median time of a load call; what was loaded is unloaded again."""
    times = []
    for number, path in enumerate(paths):
        times.append(running.load(f"{prefix}-{number}", path, format=form) * 1000)
        running.unload(f"{prefix}-{number}")
    return statistics.median(times)


def density(folder: Path, form: str, paths: list[Path]) -> list[Figure]:
    """Loads with 1 and with many present, and memory for each of the many."""
    timed, rest = paths[:TIMED], paths[TIMED:]
    with worker(folder, form) as running:
        running.load("first", rest[0], format=form)
        few = load_ms(running, "few", timed, form)
        before = pss_bytes(running.pids)
        used = processor_time(running.pids)
        for number, path in enumerate(rest[1:]):
            running.load(f"m{number}", path, format=form)
        used = (processor_time(running.pids) - used) / len(rest[1:]) * 1000
        each = (pss_bytes(running.pids) - before) / len(rest[1:]) / 2**20
        many = load_ms(running, "many", timed, form)
    count, most = len(rest), PEER_MIB[form]
    return [
        Figure(f"{form}: load of one more, 1 present", few, "ms", f"<= {FAST_MS:g}", few <= FAST_MS),
        Figure(f"{form}: load of one more, {count} present", many, "ms", f"<= {FAST_MS:g}", many <= FAST_MS),
        Figure(f"{form}: {count} present / 1 present", many / few, "ratio", "<= 1.5", many <= 1.5 * few),
        Figure(f"{form}: processor time of a load", used, "ms", "", None),
        Figure(f"{form}: memory of one more (PSS)", each, "MiB", f"<= {most:g}", each <= most),
    ]


def growth(folder: Path, paths: list[Path], cycles: int) -> list[Figure]:
    """The worker's memory after many loads and unloads, against its memory after the first of them."""
    with worker(folder, "cycles") as running:
        running.load("kept", paths[0], format="onnx")

        def churn(rounds: int) -> int:
            for number in range(rounds):
                running.load("passing", paths[1 + number % (len(paths) - 1)], format="onnx")
                running.unload("passing")
            return pss_bytes(running.pids)

        settled = churn(SETTLED)
        grown = churn(cycles)
    share = grown / settled - 1
    return [
        Figure("memory of the worker when settled", settled / 2**20, "MiB", "", None),
        Figure(f"growth over {cycles} further cycles of load and unload", share, "share", "<= 0.05", share <= GROWTH),
    ]


def run(quick: bool) -> list[Figure]:
    models, cycles = (200, 200) if quick else (1000, 1000)
    with run_folder() as folder:
        small = networks(folder / "onnx", models + TIMED)
        return [
            *density(folder, "onnx", small),
            *density(folder, "sklearn", classifiers(folder / "sklearn", models + TIMED)),
            *growth(folder, small[:100], cycles),
        ]
