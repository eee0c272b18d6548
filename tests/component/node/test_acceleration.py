"""`accelerate: auto` in a node: settled once, kept by digest, made again when it is lost, never a reason to fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import joblib
import pytest

from tests.component.node.conftest import Start
from tests.support.eventually import eventually
from tests.support.nodes import Node, infer

ROW = [[5.1, 3.5, 1.4, 0.2]]


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    path = tmp_path_factory.mktemp("models") / "forest.joblib"
    joblib.dump(RandomForestClassifier(20, random_state=1).fit(*load_iris(return_X_y=True)), path)
    return path


def tried(node: Node) -> int:
    """How often probation converted something."""
    return (node.settings.data_dir / "logs" / "probation.log").read_text().count('"accelerated"')


def converted(node: Node, name: str) -> Path:
    """The folder of the converted file that serves for a model."""
    digest = node.view.by_service(name).status.versions["v1"].acceleration.digest
    return node.settings.data_dir / "artifacts" / "sha256" / digest.removeprefix("sha256:")


def mapped(pid: int) -> str:
    """The files that a process has mapped, its libraries among them."""
    return Path(f"/proc/{pid}/maps").read_text()


async def test_it_is_settled_once_and_survives_a_restart_and_a_lost_file(start: Start, forest: Path):
    node = await start(workers=1)
    await node.declare("fast", forest.as_uri(), trusted=True, accelerate="auto")
    assert await node.settled("fast") == "Valid"
    (told,) = node.told("Accelerated", "fast")
    assert "served by its converted model" in told.message
    answer = await infer(await node.activate("fast"), ROW, tensor="input-0")
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [0]
    # The worker has what onnxruntime needs, and not scikit-learn.
    maps = mapped(node.pid("w0"))
    assert "onnxruntime" in maps
    assert "/sklearn/" not in maps
    assert tried(node) == 1

    await node.stop()
    shutil.rmtree(converted(node, "fast"))
    await node.start()
    again = await infer(await node.activate("fast", deadline_s=60.0), ROW, tensor="input-0")
    assert again.json()["outputs"] == answer.json()["outputs"]
    assert tried(node) == 2
    assert (converted(node, "fast") / "model.onnx").is_file()

    await node.stop()
    await node.start()
    await node.activate("fast", deadline_s=60.0)
    assert tried(node) == 2


async def test_what_goes_wrong_in_the_conversion_leaves_the_original(start: Start, forest: Path):
    node = await start(workers=1)
    await node.declare("plain", forest.as_uri(), trusted=True, accelerate="auto", parameters={"samples": [["x"]]})
    assert await node.settled("plain") == "Valid"
    await eventually(lambda: node.told("NotAccelerated", "plain"))
    status = node.view.by_service("plain").status.versions["v1"]
    assert not status.acceleration.used
    assert "the samples do not fit" in status.acceleration.reason
    answer = await infer(await node.activate("plain"), ROW, tensor="input-0")
    assert answer.json()["outputs"][0]["data"] == [0]
