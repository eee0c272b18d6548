"""A model whose call costs the same for 1 row and for 64: it multiplies by the same large matrices each time.

python -m bench._fixed_cost MODEL ROWS prints how long a call takes, in ms.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

TARGET_S = 5e-3
CODE = """
import numpy as np

PRODUCTS = {products}


class Model:
    signature = {{
        "inputs": [{{"name": "x", "datatype": "FP32", "shape": [-1, 4]}}],
        "outputs": [{{"name": "y", "datatype": "FP32", "shape": [-1, 4]}}],
    }}

    def __init__(self):
        self.left, self.out = np.eye(256, dtype=np.float32), np.empty((256, 256), np.float32)

    def predict(self, inputs):
        for _ in range(PRODUCTS):
            np.matmul(self.left, self.left, out=self.out)
        return {{"y": inputs["x"] @ self.out[:4, :4]}}
"""


def write_model(path: Path) -> Path:
    """A model file whose call takes about `TARGET_S` on the server's core when that is quiet."""
    path.write_text(CODE.format(products=100))
    hundred = min(own_ms(path) for _ in range(3)) / 1000
    path.write_text(CODE.format(products=max(1, round(100 * TARGET_S / hundred))))
    return path


def own_ms(path: Path, rows: int = 1) -> float:
    """The median time of a call alone, in a process of its own on the server's core."""
    from bench._processor import SERVER_CORE, on_cores

    with on_cores(SERVER_CORE):
        command = [sys.executable, "-m", "bench._fixed_cost", str(path), str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout)


def _timed_ms(path: Path, rows: int) -> float:
    import numpy as np

    spec = importlib.util.spec_from_file_location("fixed_cost_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, inputs, times = module.Model(), {"x": np.ones((rows, 4), np.float32)}, []
    for _ in range(100):
        began = time.perf_counter()
        model.predict(inputs)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    print(_timed_ms(Path(sys.argv[1]), int(sys.argv[2])))
