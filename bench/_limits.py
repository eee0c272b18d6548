"""What no server can be below: the models' own calls in a process that does nothing else.

python -m bench._limits NETWORK CLASSIFIER prints µs of processor time per call as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

CALLS, ROUNDS = 2000, 5


def best_us(call: Callable[[], object], calls: int = CALLS) -> float:
    """The fastest of some rounds."""
    times = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(calls):
            call()
        times.append((time.thread_time() - began) / calls * 1e6)
    return min(times)


def measured(network: Path, classifier: Path) -> dict[str, float]:
    """Limits by name."""
    import joblib
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(str(network), settings, providers=["CPUExecutionProvider"])
    row = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
    rows = np.repeat(row, 32, axis=0)
    fitted = joblib.load(classifier)
    wide = row.astype(np.float64)
    return {
        "session.run, 1 row": best_us(lambda: session.run(None, {"x": row})),
        "session.run, 32 rows, per row": best_us(lambda: session.run(None, {"x": rows})) / 32,
        "LogisticRegression.predict, 1 row": best_us(lambda: fitted.predict(wide), CALLS // 10),
    }


def limits(models: dict[str, Path]) -> dict[str, float]:
    """The same, from a process of its own on the server's core."""
    from bench._processor import SERVER_CORE, on_cores

    command = [sys.executable, "-m", "bench._limits", str(models["tiny"]), str(models["iris.joblib"])]
    with on_cores(SERVER_CORE):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), Path(sys.argv[2]))))
