"""64 callers of a model with 5 ms of fixed cost, with batching and without; and what a single caller waits."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench._cases import JSON
from bench._fixed_cost import own_ms, write_model
from bench._gateway import run_folder
from bench._h2load import Ask, Run, load
from bench._models import BODY
from bench._worker import worker
from bench.figures import Figure

CALLERS = 64


def measure(folder: Path, model: Path, rounds: int, seconds: float) -> list[dict[str, Run | float]]:
    """Rounds of: the model's own time, one caller, 64 callers with batching, 64 callers without."""
    body = folder / "body.json"
    body.write_bytes(BODY)
    asks = {
        name: Ask(f"/v2/models/{name}/infer", body, (*JSON, ("x-msm-target", f"default/{name}/v1")))
        for name in ("joined", "alone")
    }
    found = []
    with worker(folder) as running:
        running.load("joined", model, format="python")
        running.load("alone", model, format="python", parameters={"batching": False})

        def run(name: str, callers: int) -> Run:
            return load(running.address, asks[name], connections=callers, seconds=seconds, pids=running.pids)

        run("joined", CALLERS)
        for _ in range(rounds):
            found.append(
                {
                    "own": own_ms(model),
                    "one": run("joined", 1),
                    "joined": run("joined", CALLERS),
                    "alone": run("alone", CALLERS),
                }
            )
    return found


def run(quick: bool) -> list[Figure]:
    rounds, seconds = (2, 2.0) if quick else (7, 5.0)
    with run_folder() as folder:
        model = write_model(folder / "model.py")
        found = measure(folder, model, rounds, seconds)
        wide = own_ms(model, CALLERS)
    median = statistics.median
    own = median(one["own"] for one in found)
    gain = median(one["joined"].per_second / one["alone"].per_second for one in found)
    p99 = median(one["joined"].p99_ms / one["own"] for one in found)
    waits = median(one["one"].p50_ms / one["own"] for one in found)
    return [
        Figure("a call of the model itself, 1 row", own, "ms", "", None),
        Figure("a call of the model itself, 64 rows", wide, "ms", "", None),
        Figure("64 callers, with batching", median(one["joined"].per_second for one in found), "req/s", "", None),
        Figure("64 callers, without", median(one["alone"].per_second for one in found), "req/s", "", None),
        Figure("with / without, median of pairs", gain, "ratio", ">= 20", gain >= 20),
        Figure("p99 with batching / the model's own time", p99, "ratio", "<= 3", p99 <= 3),
        Figure("p50 of a single caller", median(one["one"].p50_ms for one in found), "ms", "", None),
        Figure("p50 of a single caller / the model's own time", waits, "ratio", "<= 1.1", waits <= 1.1),
    ]
