"""infer: from rows to a request, and from the answer to the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from msm.resources.serving import Signature, Tensor
from tests.component.cli.conftest import Run

FoundOut = Callable[..., None]


@pytest.fixture
def model(msm: Run, name: str, found_out: FoundOut) -> str:
    assert msm("deploy", name, "s3://b/k", "--alias", "stable", "--no-wait").code == 0
    found_out(name)
    return name


def test_rows_are_sent_as_the_signature_says(msm: Run, model: str):
    done = msm("infer", model, "--json", "[[5.1, 3.5, 1.4, 0.2]]", "--header", "x-user=ann", "-o", "json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["outputs"] == [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}]
    assert answer["header"] == "ann"
    assert f"answered by {model} v1 in worker w0" in done.err


def test_the_answer_is_shown_with_who_gave_it(msm: Run, model: str):
    done = msm("infer", model, "--json", "[1, 2, 3, 4]", "--version", "stable")
    assert "input-0 FP64 [1, 4]: [1,2,3,4]" in done.out
    assert f"answered by {model} stable in worker w0 after" in done.out


def test_a_whole_body_is_sent_as_it_is_even_without_a_signature(msm: Run, name: str, tmp_path: Path):
    msm("deploy", name, "s3://b/k", "--no-wait")
    body = tmp_path / "body.json"
    body.write_text('{"inputs": [{"name": "anything", "datatype": "INT8", "shape": [1], "data": [7]}]}')
    done = msm("infer", name, "--json", f"@{body}", "-o", "json")
    assert json.loads(done.out)["outputs"][0]["name"] == "anything"
    done = msm("infer", name, "--json", "[1]")
    assert done.code == 1
    assert "the whole request body" in done.err


def test_a_table_is_sent_row_by_row(msm: Run, model: str):
    table = "a,b,c,d\n1,2,3,4\n5,6,7,8\n"
    answer = json.loads(msm("infer", model, "--csv", "-", "-o", "json", stdin=table).out)
    assert answer["outputs"][0]["shape"] == [2, 4]


def test_a_file_is_sent_as_bytes(msm: Run, name: str, found_out: FoundOut, tmp_path: Path):
    msm("deploy", name, "s3://b/k", "--no-wait")
    found_out(name, signature=Signature(inputs=(Tensor(name="content", datatype="BYTES", shape=(-1,)),)))
    file = tmp_path / "picture"
    file.write_bytes(b"\xff\x00")
    answer = json.loads(msm("infer", name, "--file", str(file), "-o", "json").out)
    assert answer["outputs"][0]["data"] == [2, 0, 0, 0, 255, 0]


@pytest.mark.parametrize("arguments", [[], ["--json", "[1]", "--csv", "x"]])
def test_exactly_one_input_is_needed(msm: Run, model: str, arguments: list[str]):
    assert msm("infer", model, *arguments).code == 2


@pytest.mark.parametrize(
    ("status", "code"), [(400, 1), (404, 3), (409, 4), (429, 6), (500, 1), (502, 1), (503, 6), (504, 6)]
)
def test_a_refused_request_ends_with_the_sentence_and_its_code(msm: Run, found_out: FoundOut, status: int, code: int):
    assert msm("deploy", "broken", "s3://b/k", "--version", "v1", "--no-wait").code == 0
    found_out("broken", signature=Signature(inputs=(Tensor(name="x", datatype="INT64", shape=(-1,)),)))
    done = msm("infer", "broken", "--json", f"[{status}]")
    assert done.code == code
    assert done.err == "error: the model raised\n"


def test_an_unknown_version_is_not_found_before_anything_is_sent(msm: Run, model: str):
    done = msm("infer", model, "--json", "[1]", "--version", "v9")
    assert done.code == 3
    assert "it has v1, stable" in done.err
