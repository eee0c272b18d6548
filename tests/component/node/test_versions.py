"""Declared versions become Valid or Failed, once, and a bad one harms nobody."""

from __future__ import annotations

import http.server
import socket
import threading
from functools import partial
from pathlib import Path

import msgspec
import pytest

from msm.node.config import FetchSettings
from msm.planning.routing import effective_split
from msm.resources.meta import Meta
from msm.resources.serving import Model, ModelSpec, ModelStatus, SplitEntry, VersionSpec
from tests.component.node.conftest import Start, Write
from tests.support.eventually import eventually
from tests.support.nodes import Node, infer

pytestmark = pytest.mark.asyncio(loop_scope="module")
GOOD = [[1.0, 2.0, 3.0, 4.0]]


def in_force(status: ModelStatus) -> ModelStatus:
    """All traffic is with v1, as the traffic controller records it."""
    return msgspec.structs.replace(status, traffic=(SplitEntry(version="v1", weight=100),))


async def test_a_version_with_a_wrong_digest_fails_and_the_old_one_goes_on_serving(node: Node, models: Path):
    uri = (models / "net.onnx").as_uri()
    key = await node.declare("swap", uri)
    await node.activate("swap", deadline_s=60.0)
    await node.catalog.update_status(key, in_force)
    bad = VersionSpec(name="v2", uri=uri, digest="sha256:" + "0" * 64)
    versions = (VersionSpec(name="v1", uri=uri), bad)
    await node.catalog.apply([Model(metadata=Meta(name="swap"), spec=ModelSpec(versions=versions))], who="test")
    await eventually(lambda: node.told("VersionFailed", "swap"), within_s=20.0)
    await eventually(lambda: node.view.model(key).status.versions["v2"].phase == "Failed")
    model = node.view.model(key)
    assert model.status.versions["v2"].reason == "digest_mismatch"
    assert [entry.version for entry in effective_split(model).split] == ["v1"]
    assert (await infer(await node.activate("swap"), GOOD)).status_code == 200
    explanation = node.agent.explain(key)
    assert "v2: Failed" in explanation.state


async def test_the_same_content_is_tried_once_for_all_that_use_it(node: Node, models: Path):
    uri = (models / "iris.skops").as_uri()
    await node.declare("first", uri)
    assert await node.settled("first") == "Valid"
    tried = (node.settings.data_dir / "logs" / "probation.log").read_text().count("measured")
    await node.declare("second", uri)
    assert await node.settled("second") == "Valid"
    assert (node.settings.data_dir / "logs" / "probation.log").read_text().count("measured") == tried
    first, second = (node.view.by_service(name).status.versions["v1"] for name in ("first", "second"))
    assert first == second


async def test_a_missing_artifact_fails_at_once_with_its_reason(node: Node, tmp_path: Path):
    await node.declare("absent", (tmp_path / "none.onnx").as_uri())
    assert await node.settled("absent") == "Failed"
    status = node.view.by_service("absent").status.versions["v1"]
    assert (status.reason, status.message) == ("artifact_missing", "there is no file or folder at its address")


async def test_a_model_that_crashes_while_loading_fails_in_probation_alone(node: Node, tmp_path: Path):
    path = tmp_path / "suicide.py"
    path.write_text("import os\nclass Model:\n    def load(self, *a, **k):\n        os.abort()\n    predict = load\n")
    before = [node.pid("w0"), node.pid("w1")]
    await node.declare("suicide", path.as_uri(), trusted=True)
    assert await node.settled("suicide") == "Failed"
    assert [node.pid("w0"), node.pid("w1")] == before


async def test_an_untrusted_python_model_is_refused(node: Node, write_model: Write):
    await node.declare("untrusted", write_model("untrusted"), format="python")
    assert await node.settled("untrusted") == "Failed"
    assert node.view.by_service("untrusted").status.versions["v1"].reason == "unsafe_format"


@pytest.mark.asyncio(loop_scope="function")
async def test_a_source_that_is_away_is_asked_again_until_it_is_there(start: Start, models: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = await start(fetch=FetchSettings(private_hosts=frozenset({f"127.0.0.1:{port}"})))
    await node.declare("remote", f"http://127.0.0.1:{port}/net.onnx")
    assert await node.settled("remote") == "Failed"
    assert node.view.by_service("remote").status.versions["v1"].reason == "fetch_failed"
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(models))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        await eventually(lambda: node.view.by_service("remote").status.versions["v1"].phase == "Valid", within_s=30.0)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (await infer(await node.activate("remote"), GOOD)).status_code == 200
