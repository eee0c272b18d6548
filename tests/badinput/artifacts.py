"""Hostile and broken artifacts by name. What would run when one is unpickled writes a file: it must never be there."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bench._models import write_network

MARK = "it-ran"
Maker = Callable[[Path], Path]
MAKERS: dict[str, Maker] = {}


def maker(function: Maker) -> Maker:
    """Registers a generator under its name. It gets an empty folder and returns the artifact."""
    MAKERS[function.__name__] = function
    return function


class _Runs:
    """Unpickling it makes a folder beside the artifact."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._folder / MARK),)


def _pickle(folder: Path) -> bytes:
    return pickle.dumps(_Runs(folder))


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- pickles under many names


@maker
def pickle_as_pkl(folder: Path) -> Path:
    return _written(folder / "model.pkl", _pickle(folder))


@maker
def pickle_as_joblib(folder: Path) -> Path:
    return _written(folder / "model.joblib", _pickle(folder))


@maker
def pickle_as_onnx(folder: Path) -> Path:
    return _written(folder / "model.onnx", _pickle(folder))


@maker
def pickle_as_skops(folder: Path) -> Path:
    return _written(folder / "model.skops", _pickle(folder))


@maker
def pickle_as_json(folder: Path) -> Path:
    return _written(folder / "model.json", _pickle(folder))


@maker
def pickle_as_safetensors(folder: Path) -> Path:
    return _written(folder / "model.safetensors", _pickle(folder))


@maker
def pickle_as_text(folder: Path) -> Path:
    return _written(folder / "model.txt", pickle.dumps(_Runs(folder), protocol=0))


@maker
def pickle_of_protocol_0(folder: Path) -> Path:
    return _written(folder / "model.pkl", pickle.dumps(_Runs(folder), protocol=0))


@maker
def pickle_compressed(folder: Path) -> Path:
    import zlib

    return _written(folder / "model.joblib", zlib.compress(_pickle(folder)))


@maker
def pickle_in_zip(folder: Path) -> Path:
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", _pickle(folder))
    return path


@maker
def pickle_in_torch_zip(folder: Path) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(folder))
        archive.writestr("archive/version", "3\n")
    return path


@maker
def pickle_in_npy(folder: Path) -> Path:
    path = folder / "model.npy"
    np.save(path, np.array([_Runs(folder)], dtype=object), allow_pickle=True)
    return path


@maker
def pickle_in_folder(folder: Path) -> Path:
    (folder / "model").mkdir()
    _written(folder / "model" / "model.pkl", _pickle(folder))
    return folder / "model"


@maker
def pickle_beside_a_network(folder: Path) -> Path:
    (folder / "model").mkdir()
    _written(folder / "model" / "model.pkl", _pickle(folder))
    write_network(folder / "model" / "broken.onnx", 1).write_bytes(b"\x08\x08")
    return folder / "model"


@maker
def pickle_memo_bomb(folder: Path) -> Path:
    doubling = b"".join(b"(h%bh%btq%b0" % (bytes([i]), bytes([i]), bytes([i + 1])) for i in range(60))
    return _written(folder / "model.pkl", b"\x80\x02]q\x000" + doubling + b"h<.")


@maker
def skops_with_a_function(folder: Path) -> Path:
    """A skops archive whose schema names os.mkdir."""
    schema = {
        "__class__": "mkdir", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1, "protocol": 2,
        "content": {"module_path": "os", "function": "mkdir"}, "_skops_version": "0.11",
    }  # fmt: skip
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    return path


@maker
def skops_with_a_reduce(folder: Path) -> Path:
    """A skops archive that wants a constructor of another module called."""
    schema = {
        "__class__": "Popen", "__module__": "subprocess", "__loader__": "ObjectNode", "__id__": 1, "protocol": 2,
        "content": {"__class__": "dict", "__module__": "builtins", "__loader__": "DictNode", "content": {}, "__id__": 2,
                    "key_types": {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode",
                                  "content": [], "__id__": 3}},
        "_skops_version": "0.11",
    }  # fmt: skip
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    return path


@maker
def skops_with_a_deep_schema(folder: Path) -> Path:
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", "[" * 200_000 + "]" * 200_000)
    return path


@maker
def skops_zip_bomb(folder: Path) -> Path:
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("schema.json", b" " * (200 << 20))
    return path


@maker
def skops_with_an_entry_twice(folder: Path) -> Path:
    import warnings

    path = folder / "model.skops"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("schema.json", "{}")
        archive.writestr("schema.json", "[]")
    return path


@maker
def python_class(folder: Path) -> Path:
    (folder / "model").mkdir()
    code = f"import os\nos.mkdir({str(folder / MARK)!r})\nclass Model:\n    def predict(self, inputs): return inputs\n"
    (folder / "model" / "model.py").write_text(code)
    return folder / "model"


@maker
def python_file_as_onnx(folder: Path) -> Path:
    code = f"import os\nos.mkdir({str(folder / MARK)!r})\nclass Model:\n    def predict(self, inputs): return inputs\n"
    return _written(folder / "model.onnx", code.encode())


# ---- Python classes that are trusted and wrong


def _python(folder: Path, source: str) -> Path:
    (folder / "model.py").write_text(source)
    return folder


@maker
def python_syntax_error(folder: Path) -> Path:
    return _python(folder, "class Model\n    pass\n")


@maker
def python_raises_on_import(folder: Path) -> Path:
    return _python(folder, "class Model: pass\nraise RuntimeError('not today')\n")


@maker
def python_raises_on_load(folder: Path) -> Path:
    return _python(
        folder, "class Model:\n    def load(self, path): raise KeyError(path)\n    def predict(self, i): ...\n"
    )


@maker
def python_without_predict(folder: Path) -> Path:
    return _python(folder, "class Model:\n    pass\n")


@maker
def python_exits(folder: Path) -> Path:
    return _python(folder, "import sys\nclass Model: pass\nsys.exit(0)\n")


@maker
def python_aborts(folder: Path) -> Path:
    return _python(folder, "import os\nclass Model: pass\nos.abort()\n")


@maker
def python_hangs(folder: Path) -> Path:
    return _python(folder, "class Model: pass\nwhile True: pass\n")


@maker
def python_takes_memory(folder: Path) -> Path:
    return _python(folder, "class Model: pass\nwaste = [bytearray(1 << 24) for _ in range(100_000)]\n")


@maker
def python_wrong_signature(folder: Path) -> Path:
    source = "class Model:\n    signature = {'inputs': [{'name': 'x', 'datatype': 'FLOAT', 'shape': [1]}]}\n"
    return _python(folder, source + "    def predict(self, inputs): return inputs\n")


@maker
def python_forks(folder: Path) -> Path:
    return _python(folder, "import os\nclass Model: pass\nos.fork()\nos._exit(7)\n")


# ---- ONNX


def _onnx(folder: Path, model: ModelProto) -> Path:
    return _written(folder / "model.onnx", model.SerializeToString())


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
    return _written(path, path.read_bytes()[:-100])


@maker
def onnx_of_zeros(folder: Path) -> Path:
    return _written(folder / "model.onnx", bytes(4096))


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
    return _written(folder / "model.onnx", b"\x08\x08" + message(7, graph) + opset)


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
    return _written(path, path.read_bytes()[:-50])


@maker
def xgboost_cycle(folder: Path) -> Path:
    """A tree whose root is its own child: a prediction never ends."""
    path = _xgboost(folder)
    model = json.loads(path.read_text())
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][0] = tree["right_children"][0] = 0
    return _written(path, json.dumps(model).encode())


@maker
def xgboost_child_out_of_range(folder: Path) -> Path:
    path = _xgboost(folder)
    model = json.loads(path.read_text())
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][0] = tree["right_children"][0] = 100_000_000
    return _written(path, json.dumps(model).encode())


@maker
def xgboost_deep(folder: Path) -> Path:
    return _written(folder / "model.json", b'{"learner":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@maker
def xgboost_huge_numbers(folder: Path) -> Path:
    path = _xgboost(folder)
    text = path.read_text().replace('"num_nodes":"', '"num_nodes":"99999999999999999999')
    return _written(path, text.encode())


@maker
def lightgbm_truncated(folder: Path) -> Path:
    return _written(
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
    return _written(folder / "model.txt", text.encode())


@maker
def safetensors_header(folder: Path) -> Path:
    return _written(folder / "model.safetensors", struct.pack("<Q", 1 << 63) + b"{}")


@maker
def empty_file(folder: Path) -> Path:
    return _written(folder / "model.onnx", b"")


@maker
def empty_folder(folder: Path) -> Path:
    (folder / "model").mkdir()
    return folder / "model"


@maker
def random_bytes(folder: Path) -> Path:
    return _written(folder / "model.bin", np.random.default_rng(3).bytes(100_000))


@maker
def text_file(folder: Path) -> Path:
    return _written(folder / "model.txt", b"this is not a model\n")


@maker
def valid_network(folder: Path) -> Path:
    return write_network(folder / "model.onnx", 1)


# ---- folders that are no folders of files


@maker
def symlink_out(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (folder / "secret").symlink_to("/etc/passwd")
    return folder


@maker
def symlink_to_a_folder(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (folder / "more").symlink_to("/etc")
    return folder


@maker
def fifo(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    os.mkfifo(folder / "pipe")
    return folder


@maker
def fifo_itself(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@maker
def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{here}/s")
        finally:
            os.close(here)
    return folder


@maker
def names_that_clash(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    write_network(folder / "MODEL.onnx", 1)
    return folder


@maker
def name_not_utf8(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe"))).write_bytes(b"x")
    return folder


@maker
def twenty_folders_deep(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    deep = folder.joinpath(*["d"] * 20)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"x")
    return folder


@maker
def ten_thousand_files(folder: Path) -> Path:
    for number in range(10_001):
        (folder / f"f{number}").touch()
    return folder


@maker
def name_with_a_backslash(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (folder / "..\\evil").write_bytes(b"x")
    return folder


@maker
def missing(folder: Path) -> Path:
    return folder / "nothing.onnx"
