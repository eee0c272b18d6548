"""Small real ONNX networks, each with weights of its own, so that every one is a different artifact."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FEATURES = 4
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]}
).encode()


def write_network(path: Path, seed: int, sizes: tuple[int, ...] = (FEATURES, 16, 3)) -> Path:
    """A perceptron with random weights; `sizes` are the widths of its layers, inputs first."""
    random = np.random.default_rng(seed)
    nodes, weights, above = [], [], "x"
    for layer, (before, after) in enumerate(itertools.pairwise(sizes), 1):
        last = layer == len(sizes) - 1
        for name, shape in ((f"w{layer}", (before, after)), (f"b{layer}", (after,))):
            weights.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
        nodes.append(helper.make_node("MatMul", [above, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Add", [f"m{layer}", f"b{layer}"], ["y" if last else f"a{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"]))
        above = f"r{layer}"
    return _write(path, nodes, ("x", [None, sizes[0]]), ("y", [None, sizes[-1]]), weights)


def write_identity(path: Path, shape: tuple[int, ...]) -> Path:
    """A graph that gives rows of `shape` back as they came."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _write(path, [node], ("x", [None, *shape]), ("y", [None, *shape]), [])


def _write(path: Path, nodes: list[Any], takes: tuple, gives: tuple, weights: list[Any]) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (takes, gives)]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def write_networks(folder: Path, count: int) -> list[Path]:
    """`count` different networks below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_network(folder / f"n{seed:05d}.onnx", seed) for seed in range(count)]


def manifest(
    name: str, path: Path, *, minimum: int = 0, maximum: int = 1, idle_s: float = 3600, **version: Any
) -> dict[str, Any]:
    """A model of one version over that file; `version` are further fields of it, its format `onnx` if none is given."""
    return {
        "apiVersion": "msm/v1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {
            "versions": [{"name": "v1", "uri": path.as_uri(), "format": "onnx", **version}],
            "scaling": {"min": minimum, "max": maximum, "idleSeconds": idle_s},
        },
    }
