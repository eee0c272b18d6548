"""Events, texts in pieces, framed messages, generate and OpenAI-style bodies: pure, and strict about what comes in."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.http.openai_errors import error_object
from msm.kit.errors import InvalidInput, MsmError, Overloaded
from msm.runtime.protocols import generate, oip_grpc, oip_stream, openai, sse
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.tensors import objects
from msm.runtime.protocols.text import TextCutter
from msm.runtime.signature import Signature, Tensor

TEXT = Signature((Tensor("text", "BYTES", (-1,)), Tensor("n", "INT8", (1,), True), Tensor("x", "FP16", (-1, 2), True)))


def parsed(stream: bytes) -> list[tuple[str, str]]:
    """Events as a browser reads them."""
    found = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields = [line.split(": ", 1) for line in block.split("\n")]
        name = next((value for field, value in fields if field == "event"), "")
        found.append((name, "\n".join(value for field, value in fields if field == "data")))
    return found


def test_an_event_carries_its_data_whatever_lines_that_has() -> None:
    stream = sse.event(b'{"a":1}') + sse.event(b"one\r\ntwo\rthree\n", "error")
    assert parsed(stream) == [("", '{"a":1}'), ("error", "one\ntwo\nthree\n")]


def cut(pieces: list[str], stop: list[str], max_tokens: int | None = None) -> tuple[str, str | None, int]:
    cutter, text = TextCutter(stop, max_tokens), ""
    for piece in pieces:
        text += cutter.push(piece)
        if cutter.finished:
            return text, cutter.finished, cutter.tokens
    return text + cutter.end(), cutter.finished, cutter.tokens


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_at_the_first_stop_sequence_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    # What ends first decides; the beginning of what is cut off is where the earliest of those begins.
    ends = [end for end in range(len(whole) + 1) for stop in stops if whole[:end].endswith(stop)]
    text, finish, _ = cut(pieces, stops)
    assert finish == "stop"
    assert whole.startswith(text)
    if not ends:
        assert text == whole
    else:
        assert not any(stop in text for stop in stops)
        assert any(whole[len(text) :].startswith(stop) for stop in stops)


def test_a_text_ends_after_so_many_pieces() -> None:
    assert cut(["a", "b", "c"], [], 2) == ("ab", "length", 2)
    assert cut(["a", "b"], ["bc"], 2) == ("ab", "length", 2)
    assert cut(["a"], [], 2) == ("a", "stop", 1)


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 9), max_size=60))
def test_framed_messages_are_the_same_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream, deframer, found, at = b"".join(map(oip_grpc.frame, messages)), oip_stream.Deframer(100), [], 0
    for size in [*cuts, len(stream)]:
        found += list(deframer.feed(stream[at : at + size]))
        at += size
    deframer.end()
    assert found == messages


@given(st.binary(max_size=60))
def test_bytes_that_are_no_messages_raise_only_our_errors(data: bytes) -> None:
    deframer = oip_stream.Deframer(100)
    try:
        for message in deframer.feed(data):
            oip_stream.parse(message)
        deframer.end()
    except MsmError:
        pass


def test_an_answer_of_a_stream_is_what_a_protobuf_reader_expects() -> None:
    outputs = {"y": ("FP32", np.array([1.5], np.float32))}
    frame = oip_stream.response(("m", "v1"), "7", outputs, last=False)
    body = frame[5:]
    assert body[0] == 0x12
    infer = pb.ModelInferResponse.FromString(body[2:])
    assert (infer.model_name, infer.id, infer.outputs[0].name) == ("m", "7", "y")
    assert infer.parameters["triton_final_response"].bool_param is False
    told = oip_stream.failure(("m", "v1"), "8", InvalidInput("wrong"))[5:]
    assert told.startswith(b"\x0a\x05wrong\x12")


# ---- generate


def test_plain_values_become_tensors() -> None:
    call = generate.decode(b'{"text":"a","id":"7","parameters":{"n":-3,"other":true,"timeout":2000000},"x":[[1,2.5]]}')
    inputs = generate.to_inputs(TEXT, call)
    assert (call.id, call.timeout_s) == ("7", 2.0)
    assert inputs["text"].array.tolist() == [b"a"]
    assert (inputs["n"].array.dtype, inputs["n"].array.tolist()) == (np.int8, [-3])
    assert inputs["x"].array.tolist() == [[1, 2.5]]
    free = generate.to_inputs(Signature(), generate.decode(b'{"a":["x","y"],"b":1,"c":1.5,"d":false}'))
    assert [sent.datatype for sent in free.values()] == ["BYTES", "INT64", "FP64", "BOOL"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty_body"),
        (b"[]", "expected_object"),
        (b"{", "invalid_json"),
        (b'{"text":"\xff"}', "invalid_json"),
        (b'{"text":NaN}', "invalid_json"),
        (b'{"text":"a","text":"b"}', "duplicate_key"),
        (b'{"text":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "json_too_deep"),
        (b'{"id":5}', "invalid_id"),
        (b'{"parameters":[]}', "invalid_parameter"),
        (b'{"text":"a","parameters":{"text":"b"}}', "duplicate_input"),
        (b'{"text":5}', "wrong_type"),
        (b'{"text":null}', "wrong_type"),
        (b'{"text":["a",null]}', "wrong_type"),
        (b'{"text":{"a":1}}', "wrong_type"),
        (b'{"text":["a",["b"]]}', "wrong_type"),
        (b'{"x":[[1,2],[3]]}', "ragged"),
        (b'{"x":1}', "shape_mismatch"),
        (b'{"n":300}', "value_out_of_range"),
        (b'{"n":true}', "wrong_type"),
        (b'{"n":1.5}', "wrong_type"),
        (b'{"x":[[1e9,1]]}', "value_out_of_range"),
        (b'{"n":' + b"9" * 5000 + b"}", "invalid_json"),
    ],
)
def test_what_is_no_generate_request_is_named(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        generate.to_inputs(TEXT, generate.decode(body))
    assert refused.value.reason == reason


@given(st.binary(max_size=80) | st.text('{}[]":,1aet\\u.-', max_size=60).map(str.encode))
def test_any_bytes_raise_only_our_errors(body: bytes) -> None:
    for decode in (generate.decode, openai.decode_chat, openai.decode_completion, openai.decode_embeddings):
        with contextlib.suppress(InvalidInput):
            decode(body)


def test_outputs_are_plain_values_and_steps_are_joined() -> None:
    step = {"t": ("BYTES", objects([b"a"])), "v": ("FP32", np.array([1, np.nan], np.float32))}
    assert json.loads(generate.encode(b'{"model_name":"m",', "", step)) == {"model_name": "m", "t": "a", "v": [1, None]}
    joined = generate.join([step, {"t": ("BYTES", objects([b"b"]))}, step])
    assert json.loads(generate.encode(b"{", "", joined)) == {"t": "aba", "v": [1, None, 1, None]}
    with pytest.raises(InvalidInput, match="generate_stream"):
        generate.join([{"v": ("FP32", np.zeros((1, n), np.float32))} for n in (1, 2)])


# ---- OpenAI


def chat(**members: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}).encode()


def test_a_chat_is_decoded() -> None:
    call = openai.decode_chat(
        chat(stop="x", stream=True, stream_options={"include_usage": True}, seed=3, max_tokens=9, user="u", n=1)
    )
    assert (call.kind, call.stop, call.stream, call.include_usage, call.seed) == ("chat", ("x",), True, True, 3)
    assert (call.max_tokens, call.messages) == (9, ({"role": "user", "content": "hi"},))
    assert openai.decode_completion(b'{"prompt":["a"]}').max_tokens == 16


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ],
)
def test_what_is_not_offered_is_refused_by_its_name(members: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadParameter) as refused:
        openai.decode_chat(chat(**members))
    assert refused.value.param == param
    assert error_object(refused.value)["error"]["param"] == param


@pytest.mark.parametrize("value", [None, 5, [], [1, 2], [[1]], ["a", 1], "", ["a", ""], ["a"] * 2049])
def test_only_texts_are_embedded(value: Any) -> None:
    with pytest.raises(openai.BadParameter) as refused:
        openai.decode_embeddings(json.dumps({"model": "m", "input": value}).encode())
    assert refused.value.param == "input"


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), min_size=1, max_size=4))
def test_embeddings_are_the_same_in_both_encodings(rows: list[list[float]]) -> None:
    vectors = np.array(rows, np.float32)
    packed = openai.embeddings_answer("m", vectors, 0, as_base64=True)["data"]
    plain = openai.embeddings_answer("m", vectors, 0, as_base64=False)["data"]
    for one, other in zip(packed, plain, strict=True):
        assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() == other["embedding"]


def test_an_error_has_the_type_that_its_status_says() -> None:
    told = error_object(Overloaded("busy", reason="queue_full"))["error"]
    assert told == {"message": "busy", "type": "rate_limit_error", "param": None, "code": "queue_full"}
