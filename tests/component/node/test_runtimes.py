"""External servers as workers: a real agent, real adapters, real server processes; one for each model here."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from msm.kit.errors import Conflict, InvalidInput, LoadFailed, Unavailable
from msm.node.agent import Activated
from msm.resources.meta import Meta
from msm.resources.runtimes import ServingRuntime, ServingRuntimeSpec
from tests.component.node.conftest import Start
from tests.support.eventually import eventually
from tests.support.nodes import MIB, Node

SERVER = Path(__file__).parents[2] / "support" / "own_server.py"
QUICK: dict[str, Any] = {"workers": 1, "stats_interval_s": 0.2}


def runtime(name: str = "own", protocol: str = "oip", **more: Any) -> ServingRuntime:
    command = (sys.executable, str(SERVER), protocol, "{http_port}", "{model_dir}", "{name}")
    spec: dict[str, Any] = {
        "adapter": "process",
        "protocol": protocol,
        "command": command,
        "formats": ("json",),
        **more,
    }
    return ServingRuntime(metadata=Meta(name=name), spec=ServingRuntimeSpec(**spec))


async def declare(node: Node, *runtimes: ServingRuntime) -> None:
    """Declare runtimes and wait until the node knows of them."""
    changes = await node.catalog.apply(runtimes, who="test")

    def known() -> bool:
        found = [node.view.runtime("default", change.key.name) for change in changes]
        return all(f is not None and f.metadata.generation == c.generation for f, c in zip(found, changes, strict=True))

    await eventually(known)


@pytest.fixture
def factor(tmp_path: Path) -> str:
    path = tmp_path / "double.json"
    path.write_text(json.dumps({"factor": 2}))
    return path.as_uri()


async def post(activated: Activated, path: str, body: Any) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=activated.socket)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=20) as client:
        return await client.post(path, json=body, headers={"x-msm-target": activated.target})


def tensor(*values: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [len(values)], "datatype": "FP32", "data": list(values)}]}


def servers(node: Node) -> list[psutil.Process]:
    """The processes behind the adapters."""
    adapters = [w.pid for w in node.agent.snapshot().workers if w.runtime and w.pid]
    return [child for pid in adapters for child in psutil.Process(pid).children()]


async def test_a_server_for_each_model_starts_with_its_first_request_and_ends_with_its_unload(
    start: Start, factor: str
) -> None:
    node = await start(**QUICK)
    await declare(node, runtime(idle_seconds=0.5))
    await node.declare("double", factor, runtime="own")
    await node.settled("double")
    assert not [w for w in node.agent.snapshot().workers if w.runtime]  # nothing runs before it is needed
    activated = await node.activate("double")
    answer = await post(activated, "/v2/models/double/infer", tensor(1, 2.5))
    assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [2, 5.0])
    assert (answer.json()["model_name"], answer.json()["model_version"]) == ("double", "v1")
    assert answer.headers["x-msm-worker"] == "r0"

    (server,) = servers(node)
    copies = node.agent.snapshot().copies
    assert copies[0].memory_bytes > 10 * MIB  # the whole process, as measured
    await node.agent.deactivate("double", None)
    await eventually(lambda: not server.is_running())
    await eventually(lambda: not [w for w in node.agent.snapshot().workers if w.runtime])  # nor its adapter, idle
    await node.activate("double")
    assert len(servers(node)) == 1


async def test_an_openai_style_server_is_asked_under_its_own_name(start: Start, factor: str) -> None:
    node = await start(**QUICK)
    await declare(node, runtime("chat", "openai"))
    await node.declare("talker", factor, runtime="chat")
    await node.settled("talker")
    activated = await node.activate("talker")
    body = {"model": "talker", "messages": [{"role": "user", "content": "hello"}]}
    answer = await post(activated, "/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "talker"
    assert answer.json()["choices"][0]["message"]["content"] == "hello hello"
    streamed = await post(activated, "/v1/chat/completions", {**body, "stream": True})
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["hello", "hello"]
    assert {event["model"] for event in events} == {"talker"}
    assert streamed.text.endswith("data: [DONE]\n\n")
    refused = await post(activated, "/v1/chat/completions", ["no object"])
    assert refused.status_code == 400


async def test_a_crashed_server_takes_only_its_own_version_and_comes_back(start: Start, factor: str) -> None:
    node = await start(**QUICK)
    await declare(node, runtime())
    for name in ("double", "neighbour"):
        await node.declare(name, factor, runtime="own")
        await node.settled(name)
    neighbour = await node.activate("neighbour")
    activated = await node.activate("double")
    answer = await post(activated, "/v2/models/double/infer", tensor(666))
    assert answer.status_code == 503
    assert answer.headers["x-msm-retriable"] == "true"
    assert (await post(neighbour, "/v2/models/neighbour/infer", tensor(1))).status_code == 200
    assert len(servers(node)) == 1
    await eventually(lambda: node.told("CopyLost", "double"))
    again = await node.activate("double")
    assert (await post(again, "/v2/models/double/infer", tensor(3))).json()["outputs"][0]["data"] == [6]


async def test_a_failing_model_is_told_without_traceback_or_path(start: Start, factor: str) -> None:
    node = await start(**QUICK)
    await declare(node, runtime())
    await node.declare("double", factor, runtime="own")
    await node.settled("double")
    answer = await post(await node.activate("double"), "/v2/models/double/infer", tensor(500))
    assert answer.status_code == 500
    assert "/" not in answer.json()["error"]
    assert "Traceback" not in answer.text


async def test_a_killed_adapter_leaves_no_server_behind_and_is_replaced(start: Start, factor: str) -> None:
    node = await start(**QUICK)
    await declare(node, runtime())
    await node.declare("double", factor, runtime="own")
    await node.settled("double")
    await node.activate("double")
    (server,) = servers(node)
    os.kill(node.pid("r0"), signal.SIGKILL)
    await eventually(lambda: not server.is_running())
    await eventually(lambda: node.told("WorkerLost", "r0"))
    again = await node.activate("double")
    assert (await post(again, "/v2/models/double/infer", tensor(3))).status_code == 200


async def test_a_server_that_cannot_start_says_why_at_once(start: Start, tmp_path: Path, factor: str) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    node = await start(**QUICK)
    await declare(node, runtime())
    await node.declare("broken", broken.as_uri(), runtime="own")
    await node.settled("broken")
    with pytest.raises((LoadFailed, Unavailable), match="the server ended with status 1 before it was ready"):
        await node.activate("broken")
    missing = ("/nowhere/server", "{repository}", "{http_port}")
    await declare(node, runtime("missing", adapter="oip", command=missing))
    await node.declare("homeless", factor, runtime="missing")
    await node.settled("homeless")
    with pytest.raises(Unavailable, match="cannot be started: server cannot be started: No such file"):
        await node.activate("homeless")


async def test_the_next_node_process_takes_the_servers_over(start: Start, factor: str) -> None:
    node = await start(**QUICK)
    await declare(node, runtime())
    await node.declare("double", factor, runtime="own")
    await node.settled("double")
    await node.activate("double")
    before = (node.pid("r0"), servers(node)[0].pid)
    await node.stop(stop_workers=False)
    await node.start()
    assert (node.pid("r0"), servers(node)[0].pid) == before
    assert node.copies("double") == [("r0", "Ready")]
    assert (await post(await node.activate("double"), "/v2/models/double/infer", tensor(3))).status_code == 200


async def test_another_command_means_other_servers(start: Start, factor: str) -> None:
    node = await start(**QUICK)
    await declare(node, runtime())
    await node.declare("double", factor, runtime="own")
    await node.settled("double")
    await node.activate("double")
    before = node.pid("r0")
    await declare(node, runtime(env={"COLOUR": "blue"}))
    await eventually(lambda: not psutil.pid_exists(before))
    await node.activate("double")
    (server,) = servers(node)
    assert server.environ()["COLOUR"] == "blue"
    assert "MSM_HOME" not in server.environ()


async def test_what_a_runtime_does_not_serve_and_what_is_not_declared(start: Start, factor: str) -> None:
    node = await start(**QUICK)
    await declare(node, runtime())
    with pytest.raises(InvalidInput, match="there is no ServingRuntime 'missing'"):
        await node.declare("lost", factor, runtime="missing")
    await node.declare("other", factor, runtime="own", format="onnx")
    assert await node.settled("other") == "Failed"
    model = node.view.by_service("other")
    assert model is not None
    assert model.status is not None
    assert model.status.versions["v1"].message == "runtime own does not serve format onnx, only json"
    with pytest.raises(Conflict, match=r"servingruntime/own runs model/other; delete these first"):
        await node.catalog.delete(runtime().key, who="test")
    await node.catalog.delete(model.key, who="test")
    await node.catalog.delete(runtime().key, who="test")
    await eventually(lambda: node.view.runtime("default", "own") is None)


async def test_room_is_made_by_ending_the_server_of_a_version_that_is_idle(start: Start, factor: str) -> None:
    node = await start(**QUICK, capacity_bytes=70 * MIB)
    await declare(node, runtime())
    for name in ("first", "second"):
        await node.declare(name, factor, runtime="own", memory="60Mi", parameters={"of": name})
        await node.settled(name)
    await node.activate("first")
    (before,) = servers(node)
    (copy,) = node.agent.snapshot().copies
    assert 10 * MIB < copy.memory_bytes < 60 * MIB  # measured now: less than declared, and with another 60 too much
    await node.activate("second", deadline_s=60.0)
    assert (node.copies("first"), node.copies("second")) == ([], [("r0", "Ready")])
    assert not before.is_running()
    assert any("it makes room for default/second/v1" in event.message for event in node.told("Unloading", "first"))
