"""The models that bad input is sent to, and the manifests that declare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench._models import write_network
from tests.support.generating import SOURCE

DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64",
)  # fmt: skip

EVERY_TYPE = f"""
import numpy as np

class Model:
    signature = {{
        "inputs": [{{"name": kind.lower(), "datatype": kind, "shape": [-1], "optional": True}} for kind in {DATATYPES}],
        "outputs": [{{"name": "inputs", "datatype": "INT64", "shape": [1]}}],
    }}

    def predict(self, inputs):
        return {{"inputs": np.array([len(inputs)], np.int64)}}
"""

ECHO = """
class Model:
    signature = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
                 "outputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}]}

    def predict(self, inputs):
        return {"text": inputs["text"]}
"""

NAUGHTY = """
import time

import numpy as np

def right():
    return np.zeros(3, np.float32)

def deeper(depth):
    return deeper(depth + 1) + 1

class Model:
    signature = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}],
                 "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}]}

    def predict(self, inputs):
        match int(inputs["x"][0]):
            case 1: raise ValueError("on purpose")
            case 2: return {"other": right()}
            case 3: return {"y": np.zeros(3, np.int64)}
            case 4: return {"y": {"a": object()}}
            case 5: return {"y": np.array([np.nan, np.inf, -np.inf], np.float32)}
            case 6: return {"y": [[1.0], [1.0, 2.0]]}
            case 7: return [right()]
            case 8: return {"y": np.zeros((1, 4), np.float32)}
            case 9: return None
            case 10: raise OSError(2, "No such file or directory", "/root/secret/weights.bin")
            case 11: raise ValueError("x" * 1_000_000)
            case 12: raise SystemExit(3)
            case 13: return {"y": right(), "z": right()}
            case 14: raise MemoryError()
            case 15: return deeper(0)
            case 16: raise ValueError("first line\\nsecond line\\n  third line")
            case 18: raise ValueError("\\x1b[31mred\\x1b]0;title\\x07")
            case 19: time.sleep(0.3)
            case 17: return {"y": np.zeros(3, np.complex64)}
        return {"y": right()}
"""

CLASSES = {"every-type": EVERY_TYPE, "echo": ECHO, "naughty": NAUGHTY, "story": SOURCE}


def write_models(folder: Path) -> dict[str, Path]:
    """The artifacts by the names of their models. `failed` is a network of which half is missing."""
    paths = {"perceptron": write_network(folder / "perceptron.onnx", 1)}
    for name, source in CLASSES.items():
        paths[name] = folder / name
        paths[name].mkdir()
        (paths[name] / "model.py").write_text(source)
    paths["failed"] = folder / "failed.onnx"
    paths["failed"].write_bytes(paths["perceptron"].read_bytes()[:200])
    return paths


def declared(name: str, path: Path) -> dict[str, Any]:
    """The manifest of one of them: always in memory, except for the one that cannot be loaded."""
    minimum = 0 if name == "failed" else 1
    version = {"name": "v1", "uri": path.as_uri(), "trusted": name in CLASSES}
    if name in ("perceptron", "failed"):
        version["format"] = "onnx"
    return {
        "apiVersion": "msm/v1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {"versions": [version], "scaling": {"min": minimum, "max": 1}},
    }
