"""What an artifact is, told from its bytes alone."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm.kit.errors import InvalidInput, LoadFailed, MsmError
from msm.runtime.formats import mlflow_file, torch_file, ubjson
from msm.runtime.formats.base import files, loose_files
from msm.runtime.formats.frames import strings, text
from msm.runtime.formats.huggingface import chosen_task
from msm.runtime.formats.torch import Limits
from msm.runtime.formats.xgboost import XGBoostFormat
from msm.runtime.signature import Tensor


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"L" + struct.pack(">q", len(raw)) + raw


def _written(value: object) -> bytes:
    """UBJSON as XGBoost writes it."""
    if isinstance(value, dict):
        return b"{" + b"".join(_text(key) + _written(item) for key, item in value.items()) + b"}"
    if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
        return b"[$d#L" + struct.pack(f">q{len(value)}f", len(value), *value)
    if isinstance(value, list):
        items = b"".join(_written(item) for item in value)
        return b"[" + items + b"]" if len(value) % 2 else b"[#L" + struct.pack(">q", len(value)) + items
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        return b"L" + struct.pack(">q", value)
    return b"d" + struct.pack(">f", value) if isinstance(value, float) else b"S" + _text(str(value))


_VALUES = st.recursive(
    st.integers(-(2**62), 2**62) | st.booleans() | st.floats(-1e9, 1e9, width=32) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=4), _VALUES, max_size=4), st.data())
def test_a_ubjson_document_is_whole_only_as_a_whole(document: dict[str, object], data: st.DataObject) -> None:
    written = _written(document)
    assert ubjson.is_whole(written)
    assert not ubjson.is_whole(written[: data.draw(st.integers(0, len(written) - 1))])
    assert not ubjson.is_whole(written + b"}")


@given(st.binary(max_size=60))
def test_any_bytes_after_a_brace_are_judged_without_an_error(rest: bytes) -> None:
    assert ubjson.is_whole(b"{" + rest) in (True, False)


@pytest.mark.parametrize(
    "document", [b"{" * 300, b"{i\xff", b"{i\x01a[$S#i\x01", b"{i\x01a[#i\x02i\x01}", b"{i\x01a{#i\x01", b"[]", b""]
)
def test_what_xgboost_does_not_write_is_not_whole(document: bytes) -> None:
    assert not ubjson.is_whole(document)


@pytest.mark.parametrize(
    ("content", "is_model"),
    [
        (b'{"learner":{"attributes":{}},"version":[3,0,0]}', True),
        (b'{ "version": [1], "learner" : { } }', True),
        (b'{"Config":{},"learner":{}}', True),
        (_written({"learner": {}, "version": []}), True),
        (b'{"learner": "me", "version": 1}', False),
        (b'{"name": "learner"}', False),
        (b"learner", False),
        (b"", False),
    ],
)
def test_json_that_speaks_of_learners_need_not_be_a_booster(tmp_path: Path, content: bytes, is_model: bool) -> None:
    (tmp_path / "x").write_bytes(content)
    assert XGBoostFormat().looks_like(tmp_path / "x") is is_model


def _zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "script"),
        (("m/data.pkl", "m/version"), "pickle"),
        (("m/archive_format", "m/models/model.json"), "export"),
        (("serialized_exported_program.json",), "export"),
        (("schema.json",), None),
        (("word/document.xml",), None),
        ((), None),
    ],
)
def test_the_kinds_of_torch_archives(tmp_path: Path, names: tuple[str, ...], kind: str | None) -> None:
    assert torch_file.kind(_zip(tmp_path / "m", *names)) == kind


def test_a_broken_zip_is_no_torch_archive(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"PK\x03\x04" + b"x" * 50)
    assert torch_file.kind(tmp_path / "m") is None


@pytest.mark.parametrize(
    ("name", "content", "whole"),
    [
        ("MLmodel", "flavors:\n  sklearn: {}\n", True),
        ("MLmodel", "nothing", False),
        ("model.py", "class Model:\n  pass\n", True),
        ("model.py", "# class Model is elsewhere\n", False),
        ("config.json", '{"architectures": ["BertModel"]}', True),
        ("config.json", '{"learning_rate": 0.1}', False),
        ("config.json", "[" * 100_000, False),
    ],
)
def test_a_folder_that_says_what_it_is_has_no_loose_files(tmp_path: Path, name: str, content: str, whole: bool) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert list(loose_files(tmp_path)) == ([] if whole else list(files(tmp_path)))
    assert list(loose_files(tmp_path / name)) == [tmp_path / name]


def _mlmodel(folder: Path, inputs: object = None, outputs: object = None) -> mlflow_file.MLmodel:
    signature = {"inputs": json.dumps(inputs or []), "outputs": json.dumps(outputs or [])}
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"x": {"data": "y"}}, "signature": signature}))
    return mlflow_file.read(folder)


def test_columns_and_tensors_of_an_mlmodel(tmp_path: Path) -> None:
    columns = [
        {"type": "double", "name": "a", "required": True}, {"type": "string", "name": "b", "required": False},
        {"type": "long"},
    ]  # fmt: skip
    found = _mlmodel(tmp_path, columns)
    assert found.signature.inputs == (
        Tensor("a", "FP64", (-1,)), Tensor("b", "BYTES", (-1,), True), Tensor("input-2", "INT64", (-1,)),
    )  # fmt: skip
    assert found.kinds == {"a": "double", "b": "string", "input-2": "long"}
    tensors = [
        {"type": "tensor", "tensor-spec": {"dtype": "float16", "shape": [-1, 2]}},
        {"type": "tensor", "name": "t", "tensor-spec": {"dtype": "object", "shape": [-1]}},
    ]
    found = _mlmodel(tmp_path, tensors, tensors[:1])
    assert found.signature.inputs == (Tensor("input-0", "FP16", (-1, 2)), Tensor("t", "BYTES", (-1,)))
    assert found.signature.outputs == (Tensor("output-0", "FP16", (-1, 2)),)
    assert found.kinds == {}


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "flavors: 3", "flavors: {}", "flavors: {a: b}", "x: &a [*a, *a]", "\x00", "flavors: [" * 5000,
        "flavors: {a: {}}\nsignature: {inputs: '[1]'}", "flavors: {a: {}}\nsignature: {inputs: '{'}",
        "flavors: {a: {}}\nsignature: 7", "!!python/object/apply:os.system ['true']",
        "flavors: {a: {}}\nsignature: {inputs: '[{\"type\": \"tensor\", \"tensor-spec\": {\"dtype\": \"c8\"}}]'}",
    ],
)  # fmt: skip
def test_an_mlmodel_that_is_wrong_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "MLmodel").write_text(content)
    with pytest.raises(LoadFailed) as refused:
        mlflow_file.read(tmp_path)
    assert refused.value.reason == "corrupt_artifact"


@pytest.mark.parametrize(
    ("architecture", "wanted", "task"),
    [
        ("BertForSequenceClassification", None, "text-classification"),
        ("BartForSequenceClassification", "zero-shot-classification", "zero-shot-classification"),
        ("LlamaForCausalLM", None, "text-generation"),
        ("GPT2LMHeadModel", None, "text-generation"),
        ("RobertaForMaskedLM", "feature-extraction", "feature-extraction"),
        ("BertModel", None, "feature-extraction"),
        ("BertModel", "fill-mask", None),
        ("BertForMaskedLM", "poetry", None),
        ("ViTForImageClassification", None, None),
        (None, None, None),
    ],
)
def test_the_task_of_an_architecture(architecture: str | None, wanted: str | None, task: str | None) -> None:
    config = {"architectures": [architecture] if architecture else None}
    if task is not None:
        assert chosen_task(config, wanted) == task
        return
    with pytest.raises(MsmError):
        chosen_task(config, wanted)


def test_dimensions_are_checked_by_their_symbols() -> None:
    limits = Limits({"a": ["n", None], "b": ["n", "m"]}, {"n": (2, 4), "m": (0, 2**63)})
    limits.check({"a": np.zeros((3, 9)), "b": np.zeros((3, 1))})
    for a, b in (((1, 9), (1, 1)), ((5, 9), (5, 1)), ((2, 9), (3, 1))):
        with pytest.raises(InvalidInput):
            limits.check({"a": np.zeros(a), "b": np.zeros(b)})


def test_text_is_utf8() -> None:
    array = np.array([[b"a", "\u00fc".encode()]], object)
    assert text("t", array).tolist() == [["a", "\u00fc"]]
    assert strings("t", array) == ["a", "\u00fc"]
    with pytest.raises(InvalidInput, match="'t'"):
        strings("t", np.array([b"\xc3"], object))
