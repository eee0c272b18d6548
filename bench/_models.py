"""Small real ONNX networks, each with weights of its own, so that every one is a different artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FEATURES = 4
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]}
).encode()


def write_network(path: Path, seed: int, hidden: int = 16) -> Path:
    """A perceptron FEATURES-hidden-3 with random weights."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.normal(size=(FEATURES, hidden)),
        "b1": random.normal(size=hidden),
        "w2": random.normal(size=(hidden, 3)),
        "b2": random.normal(size=3),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"]),
        helper.make_node("Add", ["h0", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
        helper.make_node("Add", ["h3", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def write_networks(folder: Path, count: int) -> list[Path]:
    """`count` different networks below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_network(folder / f"n{seed:05d}.onnx", seed) for seed in range(count)]


def manifest(name: str, path: Path, *, minimum: int = 0, maximum: int = 1, idle_s: float = 3600) -> dict[str, Any]:
    """A model of one version over that file."""
    return {
        "apiVersion": "msm/v1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {
            "versions": [{"name": "v1", "uri": path.as_uri(), "format": "onnx"}],
            "scaling": {"min": minimum, "max": maximum, "idleSeconds": idle_s},
        },
    }
