"""Artifacts whose data are wrong: broken, lying, or without an end."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bench._models import write_network
from tests.badinput.makers import Maker, registered_in, written

MAKERS: dict[str, Maker] = {}
maker = registered_in(MAKERS)


def _onnx(folder: Path, model: ModelProto) -> Path:
    return written(folder / "model.onnx", model.SerializeToString())


def _graph(nodes: list[Any], outputs: list[str], initializers: list[Any] = [], **more: Any) -> ModelProto:  # noqa: B006
    graph = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **more)


def _external(folder: Path, location: str) -> Path:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    return _onnx(folder, _graph([helper.make_node("Add", ["x", "w"], ["y"])], ["y"], [weights]))


@maker
def onnx_external_relative(folder: Path) -> Path:
    return _external(folder, "../../../../../../etc/passwd")


@maker
def onnx_external_absolute(folder: Path) -> Path:
    return _external(folder, "/etc/passwd")


@maker
def onnx_external_missing(folder: Path) -> Path:
    return _external(folder, "weights.bin")


@maker
def onnx_truncated(folder: Path) -> Path:
    path = write_network(folder / "model.onnx", 1)
    return written(path, path.read_bytes()[:-100])


@maker
def onnx_of_zeros(folder: Path) -> Path:
    return written(folder / "model.onnx", bytes(4096))


@maker
def onnx_unknown_operator(folder: Path) -> Path:
    return _onnx(folder, _graph([helper.make_node("Frobnicate", ["x"], ["y"], domain="mine")], ["y"]))


@maker
def onnx_cycle(folder: Path) -> Path:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    return _onnx(folder, _graph(nodes, ["b"]))


@maker
def onnx_tensor_shorter_than_its_shape(folder: Path) -> Path:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"\0\0\0\0")
    return _onnx(folder, _graph([helper.make_node("Add", ["x", "w"], ["y"])], ["y"], [weights]))


@maker
def onnx_negative_shape(folder: Path) -> Path:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-4], raw_data=b"\0\0\0\0")
    return _onnx(folder, _graph([helper.make_node("Add", ["x", "w"], ["y"])], ["y"], [weights]))


@maker
def onnx_terabyte(folder: Path) -> Path:
    """A constant of 800 GB in a few bytes."""
    shape = numpy_helper.from_array(np.array([200_000_000_000], np.int64), "s")
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0)]
    return _onnx(folder, _graph(nodes, ["y"], [shape]))


@maker
def onnx_newer_opset(folder: Path) -> Path:
    model = _graph([helper.make_node("Relu", ["x"], ["y"])], ["y"])
    model.opset_import[0].version = 9999
    return _onnx(folder, model)


@maker
def onnx_deep_subgraphs(folder: Path) -> Path:
    """Graphs in attributes of nodes, 200 deep, written as bytes: the library itself refuses to."""

    def message(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while True:
            size, low = size >> 7, size & 0x7F
            length += bytes([low | (0x80 if size else 0)])
            if not size:
                return bytes([number << 3 | 2]) + length + content

    graph = message(2, b"leaf")
    for _ in range(200):
        attribute = message(1, b"body") + message(6, graph)
        graph = message(1, message(4, b"If") + message(5, attribute)) + message(2, b"g")
    opset = message(8, b"\x10\x11")
    return written(folder / "model.onnx", b"\x08\x08" + message(7, graph) + opset)


@maker
def two_networks(folder: Path) -> Path:
    write_network(folder / "a.onnx", 1)
    write_network(folder / "b.onnx", 2)
    return folder


# ---- boosted trees, safetensors, nothing at all


def _xgboost(folder: Path) -> Path:
    import xgboost

    path = folder / "model.json"
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    data = xgboost.DMatrix(rows, label=np.arange(10) % 2)
    xgboost.train({"max_depth": 2, "nthread": 1}, data, 2).save_model(path)
    return path


@maker
def xgboost_truncated(folder: Path) -> Path:
    path = _xgboost(folder)
    return written(path, path.read_bytes()[:-50])


@maker
def xgboost_cycle(folder: Path) -> Path:
    """A tree whose root is its own child: a prediction never ends."""
    path = _xgboost(folder)
    model = json.loads(path.read_text())
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][0] = tree["right_children"][0] = 0
    return written(path, json.dumps(model).encode())


@maker
def xgboost_child_out_of_range(folder: Path) -> Path:
    path = _xgboost(folder)
    model = json.loads(path.read_text())
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][0] = tree["right_children"][0] = 100_000_000
    return written(path, json.dumps(model).encode())


@maker
def xgboost_deep(folder: Path) -> Path:
    return written(folder / "model.json", b'{"learner":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@maker
def xgboost_huge_numbers(folder: Path) -> Path:
    path = _xgboost(folder)
    text = path.read_text().replace('"num_nodes":"', '"num_nodes":"99999999999999999999')
    return written(path, text.encode())


@maker
def lightgbm_truncated(folder: Path) -> Path:
    return written(
        folder / "model.txt", b"tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nmax_feature_idx=3\n"
    )


@maker
def lightgbm_lies(folder: Path) -> Path:
    text = (
        "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=3\nobjective=binary\n"
        "feature_names=a b c d\nfeature_infos=[0:1] [0:1] [0:1] [0:1]\ntree_sizes=300\n\nTree=0\n"
        "num_leaves=1000000000\nnum_cat=0\nsplit_feature=0\nleft_child=-1\nright_child=-2\nleaf_value=0.1 0.2\n\n"
        "end of trees\n"
    )
    return written(folder / "model.txt", text.encode())


@maker
def safetensors_header(folder: Path) -> Path:
    return written(folder / "model.safetensors", struct.pack("<Q", 1 << 63) + b"{}")


@maker
def empty_file(folder: Path) -> Path:
    return written(folder / "model.onnx", b"")


@maker
def empty_folder(folder: Path) -> Path:
    (folder / "model").mkdir()
    return folder / "model"


@maker
def random_bytes(folder: Path) -> Path:
    return written(folder / "model.bin", np.random.default_rng(3).bytes(100_000))


@maker
def text_file(folder: Path) -> Path:
    return written(folder / "model.txt", b"this is not a model\n")


@maker
def valid_network(folder: Path) -> Path:
    return write_network(folder / "model.onnx", 1)
