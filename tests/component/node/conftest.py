from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.support.nodes import Folder, Node, open_node

Start = Callable[..., Awaitable[Node]]
Write = Callable[..., str]

PYTHON_MODEL = """
import ctypes, os, time

class Model:
    signature = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                 "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]}

    def load(self, *arguments, **named):
        time.sleep(LOAD_SECONDS)
        if FAIL_FILE and os.path.exists(FAIL_FILE):
            raise ValueError("the weights do not fit")

    def predict(self, inputs):
        x = inputs["x"]
        if x[0, 0] == 666:
            ctypes.string_at(0)
        if x[0, 0] == 667:
            while True:
                pass
        return {"y": x}
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    folder = Folder()
    yield folder.path
    folder.remove()


@pytest.fixture
async def start(short_folder: Path) -> AsyncIterator[Start]:
    """Start a node with the given settings; it is ended with the test."""
    nodes: list[Node] = []

    async def begin(**settings: Any) -> Node:
        node = await open_node(short_folder, **settings)
        nodes.append(node)
        await node.start()
        return node

    yield begin
    for node in nodes:
        await node.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[Node]:
    """A node shared by the tests of a module, which use different models."""
    folder = Folder()
    shared = await open_node(folder.path)
    await shared.start()
    await shared.all_ready()
    yield shared
    await shared.close()
    folder.remove()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small real models: iris.skops and net.onnx."""
    folder = tmp_path_factory.mktemp("models")
    _write_iris(folder / "iris.skops")
    _write_network(folder / "net.onnx")
    return folder


def _write_iris(path: Path) -> None:
    import skops.io
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, labels = load_iris(return_X_y=True)
    skops.io.dump(LogisticRegression(max_iter=500).fit(features, labels), path)


def _write_network(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture
def write_model(tmp_path: Path) -> Write:
    """Write a Python model; returns its address.

    It takes `load_seconds` to load and fails to while `fail_file` exists, crashes its process for the first value
    666 and never returns for 667.
    """

    def write(name: str, load_seconds: float = 0.0, fail_file: Path | None = None) -> str:
        path = tmp_path / f"{name}.py"
        text = PYTHON_MODEL.replace("LOAD_SECONDS", str(load_seconds))
        path.write_text(text.replace("FAIL_FILE", repr(str(fail_file)) if fail_file else "None") + f"\n# {name}\n")
        return path.as_uri()

    return write
