"""Streams through a real Envoy and a real worker, asked by the clients that people use."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from msm.kit.errors import LoadFailed
from tests.component.gateway.clients import rest
from tests.component.gateway.harness import Mesh, Recipe, plan, running_mesh
from tests.support.eventually import eventually
from tests.support.generating import EMBEDDING_SOURCE, SOURCE, write_generating
from tests.support.workers import WorkerProcess, start_worker

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]


class RealWorker:
    """A worker as the node starts it, in the place of the harness's own."""

    def __init__(self, process: WorkerProcess) -> None:
        self.process = process
        self.name = process.id
        self.socket = str(process.data)

    @property
    def alive(self) -> bool:
        return self.process.process.poll() is None

    def kill(self) -> None:
        self.process.kill()


class Generating:
    """A gateway and one worker that holds "story" and "vectors"."""

    def __init__(self, mesh: Mesh, worker: WorkerProcess, folder: Path) -> None:
        self.mesh, self.worker, self.folder = mesh, worker, folder

    @property
    def port(self) -> int:
        return self.mesh.config.port

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.mesh.url}/v1", api_key="none", max_retries=0)

    async def publish(self, service: str, **options: Any) -> None:
        await self.mesh.publisher.publish(plan(service, {"v1": [str(self.worker.data)]}, **options))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Generating]:
    async with running_mesh(workers=0) as mesh:
        worker = await asyncio.to_thread(start_worker, mesh.run_dir, "g0")
        mesh.workers["g0"] = RealWorker(worker)  # type: ignore[assignment]
        await mesh.workers_changed()
        folder = tmp_path_factory.mktemp("models")
        for name, source in (("story", SOURCE), ("vectors", EMBEDDING_SOURCE)):
            loaded = worker.load(f"default/{name}/v1", write_generating(folder / name, source), trusted=True)
            assert loaded.status == 200, loaded.body
        found = Generating(mesh, worker, folder)
        # The services' time-out is one second: no stream may be cut by it.
        await found.publish("story", timeout_s=1.0)
        await found.publish("vectors")
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(made: Generating) -> AsyncIterator[openai.AsyncOpenAI]:
    async with made.client() as client:
        yield client


async def lines_of(mesh: Mesh, service: str, seen: list[str], *, on_line: Callable[[], None], **values: Any) -> None:
    """Put the lines of a generate_stream into `seen` as they come, calling `on_line` after each."""
    async with (
        rest(mesh) as client,
        client.stream("POST", f"/v2/models/{service}/generate_stream", json=values) as answer,
    ):
        async for line in answer.aiter_lines():
            seen.append(line)
            on_line()


async def pieces_of(stream: Any, seen: list[str]) -> None:
    """Put the texts of a streamed completion into `seen` as they come."""
    async for chunk in stream:
        seen.append(chunk.choices[0].text)


async def test_completions_and_chats_by_the_sdk(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.completions.create(model="story", prompt="once upon", max_tokens=5)
    assert (answer.object, answer.model, answer.choices[0].text) == (
        "text_completion",
        "story",
        "once upon once upon once ",
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 5, 7)
    chat = await sdk.chat.completions.create(
        model="story:v1",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "tell END"}]},
        ],
        stop=["END", "never"],
        temperature=0.5,
        seed=1,
    )
    assert chat.choices[0].message.content == "be brief tell "
    assert (chat.choices[0].finish_reason, chat.choices[0].message.role) == ("stop", "assistant")
    assert chat.id.startswith("chatcmpl-")


async def test_streams_by_the_sdk(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.completions.create(model="story", prompt="a b", max_tokens=3, stream=True)
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks] == ["a ", "b ", "a ", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "length"]
    chat = await sdk.chat.completions.create(
        model="story", messages=[{"role": "user", "content": "x y"}], stream=True, max_completion_tokens=3,
        stream_options={"include_usage": True},
    )  # fmt: skip
    found = [chunk async for chunk in chat]
    assert found[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found[:-1]) == "x y x "
    assert found[-2].choices[0].finish_reason == "length"
    assert found[-1].choices == []
    assert found[-1].usage is not None
    assert (found[-1].usage.prompt_tokens, found[-1].usage.completion_tokens) == (2, 3)
    assert len({chunk.id for chunk in found}) == 1


async def test_embeddings_by_the_sdk(made: Generating, sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.embeddings.create(model="vectors", input=["one", "two"])  # asks for base64 by itself
    plain = await sdk.embeddings.create(model="vectors", input="two", encoding_format="float")
    assert [len(entry.embedding) for entry in answer.data] == [4, 4]
    assert answer.data[1].embedding == pytest.approx(plain.data[0].embedding)
    assert [entry.index for entry in answer.data] == [0, 1]
    async with rest(made.mesh) as client:
        raw = await client.post(
            "/v1/embeddings", json={"model": "vectors", "input": "two", "encoding_format": "base64"}
        )
    decoded = np.frombuffer(base64.b64decode(raw.json()["data"][0]["embedding"]), "<f4")
    assert decoded.tolist() == pytest.approx(plain.data[0].embedding)


async def test_an_error_in_the_middle_of_a_stream_is_the_sdk_s_error(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.completions.create(model="story", prompt="raise", stream=True, max_tokens=9)
    seen: list[str] = []
    with pytest.raises(openai.APIError, match="the model raised ValueError: on purpose") as failed:
        await pieces_of(stream, seen)
    assert seen == ["raise ", "raise "]
    assert (failed.value.code, failed.value.type) == ("model_error", "server_error")
    with pytest.raises(openai.InternalServerError, match="must be text"):
        await sdk.completions.create(model="story", prompt="number")


async def test_refusals_have_the_form_that_the_sdk_reads(made: Generating, sdk: openai.AsyncOpenAI) -> None:
    await made.mesh.cold("broken-story", recipe=Recipe(failure=LoadFailed("the artifact is corrupt")))
    cases: list[tuple[type[openai.APIStatusError], str, str | None, Any]] = [
        (openai.NotFoundError, "not_found", None, {"model": "nobody", "prompt": "x"}),
        (openai.NotFoundError, "version_not_found", "model", {"model": "story:v9", "prompt": "x"}),
        (openai.BadRequestError, "invalid_name", None, {"model": "Not A Name", "prompt": "x"}),
        (openai.InternalServerError, "load_failed", None, {"model": "broken-story", "prompt": "x"}),
        (openai.BadRequestError, "unsupported_parameter", "n", {"model": "story", "prompt": "x", "n": 2}),
        (
            openai.BadRequestError,
            "invalid_parameter",
            "temperature",
            {"model": "story", "prompt": "x", "temperature": 9},
        ),
        (openai.BadRequestError, "invalid_parameter", "prompt", {"model": "story", "prompt": [1, 2]}),
        (openai.BadRequestError, "unsupported_task", "model", {"model": "vectors", "prompt": "x"}),
    ]
    for kind, code, param, asked in cases:
        with pytest.raises(kind) as refused:
            await sdk.completions.create(**asked)
        assert (refused.value.code, refused.value.param) == (code, param), asked
        assert refused.value.body["message"]  # type: ignore[index]
    with pytest.raises(openai.BadRequestError):
        await sdk.embeddings.create(model="vectors", input=[[1, 2]])
    async with rest(made.mesh) as client:
        broken = await client.post("/v1/chat/completions", content="{")
        too_large = await client.post(
            "/v1/completions", content=b'{"model":"story","prompt":"%b"}' % (b"x" * 3_000_000)
        )
    assert broken.json()["error"]["type"] == "invalid_request_error"
    assert too_large.status_code == 413
    assert too_large.json()["error"]["code"] == "too_large"


async def test_a_stream_outlives_the_time_out_of_its_service_and_flows(made: Generating) -> None:
    async with (
        rest(made.mesh) as client,
        client.stream("POST", "/v2/models/story/generate_stream", json={"text": "gate", "length": 4}) as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream"
        began = asyncio.get_running_loop().time()
        lines = answer.aiter_lines()
        seen = []
        async for line in lines:
            if line:
                seen.append(json.loads(line.removeprefix("data: "))["text"])
                if len(seen) < 4:
                    await asyncio.sleep(0.5)  # longer, in all, than the service's time-out
                    (made.folder / "story" / f"go-{len(seen)}").touch()
        assert seen == ["gate0 ", "gate1 ", "gate2 ", "gate3 "]
        assert asyncio.get_running_loop().time() - began > 1.2


async def test_a_client_that_hangs_up_ends_the_model(made: Generating) -> None:
    async with (
        rest(made.mesh) as client,
        client.stream("POST", "/v2/models/story/generate_stream", json={"text": "patient", "length": 9}) as answer,
    ):
        await anext(answer.aiter_lines())
    await eventually(lambda: (made.folder / "story" / "closed-patient").exists(), within_s=5)


async def test_a_slow_client_makes_the_model_wait(made: Generating) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port, limit=65536)
    body = b'{"text":"large","length":4000}'
    head = f"POST /v2/models/story/generate_stream HTTP/1.1\r\nhost: m\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readuntil(b"\r\n\r\n")
    seen = [-1, 0]
    async with rest(made.mesh) as client:
        question = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["count"]}]}
        while seen[-1] != seen[-2] or not seen[-1]:
            await asyncio.sleep(0.3)
            answer = await client.post("/v2/models/story/infer", json=question)
            seen.append(int(answer.json()["outputs"][0]["data"][0]))
    assert seen[-1] < 500  # 32 MB: the buffers of the kernel and of Envoy on the way
    writer.close()


# ---- tritonclient


def _inputs(kind: Any, text: str, length: int) -> list[Any]:
    words = kind("text", [1], "BYTES")
    words.set_data_from_numpy(np.array([text.encode()], object))
    count = kind("length", [1], "INT32")
    count.set_data_from_numpy(np.array([length], np.int32))
    return [words, count]


def _ask_triton(port: int) -> list[tuple[str, Any]]:
    """Two requests in one stream, the second with an error; then the same with an empty last answer."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    found = []
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers={"mm-model-id": "story"})
        client.async_stream_infer("story", _inputs(triton.InferInput, "t", 2), request_id="1")
        for _ in range(2):
            result, error = answers.get(timeout=10)
            assert error is None
            found.append((result.get_response().id, result.as_numpy("text")[0]))
        client.async_stream_infer("story", _inputs(triton.InferInput, "raise-first", 2), request_id="2")
        result, error = answers.get(timeout=10)
        found.append(("error", error.message()))
        client.async_stream_infer(
            "story", _inputs(triton.InferInput, "u", 1), request_id="3", enable_empty_final_response=True
        )
        for _ in range(2):
            result, error = answers.get(timeout=10)
            response = result.get_response()
            found.append((response.id, response.parameters["triton_final_response"].bool_param))
        client.stop_stream()
    return found


async def test_tritonclient_streams(made: Generating) -> None:
    assert await asyncio.to_thread(_ask_triton, made.port) == [
        ("1", b"t0 "), ("1", b"t1 "), ("error", "the model raised ValueError: on purpose"), ("3", False), ("3", True),
    ]  # fmt: skip


async def test_tritonclient_s_asynchronous_client_streams(made: Generating) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for text in ("v", "w"):
            yield {"model_name": "story", "inputs": _inputs(triton_aio.InferInput, text, 2), "request_id": text}

    async with triton_aio.InferenceServerClient(f"127.0.0.1:{made.port}") as client:
        stream = client.stream_infer(requests(), headers={"mm-model-id": "story"})
        found = [result.as_numpy("text")[0] async for result, error in stream if error is None]
    assert found == [b"v0 ", b"v1 ", b"w0 ", b"w1 "]


async def test_a_stream_that_a_dying_worker_breaks_is_told_and_not_replayed(tmp_path: Path) -> None:
    async with running_mesh(workers=0) as mesh:
        worker = await asyncio.to_thread(start_worker, mesh.run_dir, "g0")
        mesh.workers["g0"] = RealWorker(worker)  # type: ignore[assignment]
        await mesh.workers_changed()
        worker.load("default/dies/v1", write_generating(tmp_path / "dies"), trusted=True)
        await mesh.publisher.publish(plan("dies", {"v1": [str(worker.data)]}))
        seen: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):
            await lines_of(mesh, "dies", seen, on_line=(tmp_path / "dies" / "die-now").touch, text="die", length=5)
        assert [json.loads(line[6:])["text"] for line in seen if line] == ["die0 ", "die1 "]
        assert mesh.activator.rescues == []
