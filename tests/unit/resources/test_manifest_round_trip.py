"""What is written is what is read: typed values survive YAML and JSON, scalars follow YAML 1.2."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm.resources.manifest import dump_plain_yaml, dump_yaml, load, plain
from msm.resources.meta import Meta
from msm.resources.serving import (
    Mirror,
    Model,
    ModelSpec,
    Scaling,
    Signature,
    SplitEntry,
    Sticky,
    Tensor,
    Traffic,
    VersionSpec,
)
from msm.resources.validate import check
from msm.resources.yaml_tree import core_scalar, read_yaml

MANIFEST = """\
apiVersion: msm/v1
kind: Model
metadata: {name: iris, labels: {task: classification, country: no}}
spec:
  versions:
  - {name: v1, format: sklearn, uri: "file:///models/iris-v1.skops"}
  - name: v2
    uri: s3://bucket/iris-v2.onnx
    parameters: {maxBatchSize: 64, mode: 0o17, day: 2024-01-02, ratio: 1e3, off: on}
  aliases: {stable: v1}
  traffic:
    split: [{version: v1, weight: 90}, {version: v2, weight: 10}]
"""


def test_a_manifest_becomes_typed_values_with_yaml_1_2_scalars():
    (found,) = load(MANIFEST)
    model = found.resource
    assert (found.document, found.line) == (1, 1)
    assert model.metadata == Meta(name="iris", labels={"task": "classification", "country": "no"})
    assert model.spec.versions[1].parameters == {
        "maxBatchSize": 64, "mode": 15, "day": "2024-01-02", "ratio": 1000.0, "off": "on",
    }  # fmt: skip
    assert model.spec.traffic.split == (SplitEntry(version="v1", weight=90), SplitEntry(version="v2", weight=10))


def test_documents_lists_and_json_are_all_read():
    (model,) = load(MANIFEST)
    other = json.dumps(plain(model.resource)).replace('"iris"', '"other"')
    assert [item.line for item in load(MANIFEST + "---\n" + other)] == [1, 13]
    listed = load(f"[{json.dumps(plain(model.resource))},\n{other}]")
    assert [(item.resource.metadata.name, item.document, item.line) for item in listed] == [
        ("iris", 1, 1), ("other", 2, 2),
    ]  # fmt: skip


def test_json_is_read_as_json_and_not_as_yaml():
    (found,) = load(json.dumps(plain(load(MANIFEST)[0].resource)).replace('"no"', '"\\ud83d\\ude00\\/"'))
    assert found.resource.metadata.labels["country"] == "😀/"


def test_flow_style_yaml_that_is_no_json_is_read():
    (found,) = load(
        "{apiVersion: msm/v1, kind: Model, metadata: {name: a}, spec: {versions: [{name: v1, uri: 'file:///m'}]}}"
    )
    assert found.resource.metadata.name == "a"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("off", "off"), ("Yes", "Yes"), ("y", "y"), ("true", True), ("FALSE", False), ("~", None),
        ("0o17", 15), ("0x1F", 31), ("017", 17), ("0b1", "0b1"), ("1_000", "1_000"), ("12:30:45", "12:30:45"),
        ("1e3", 1000.0), (".5", 0.5), ("2024-01-02", "2024-01-02"), ("=", "="), ("<<", "<<"), ("-", "-"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(text: str, value: Any):
    assert core_scalar(text) == value
    assert type(core_scalar(text)) is type(value)


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS | st.sampled_from(["no", "0o17", "1e3", "null", "~", "", "0777", ".inf", "- a", "a: b", " x ", "#", "1_0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
TENSORS = st.builds(
    Tensor,
    name=NAMES,
    datatype=st.sampled_from(["FP32", "BYTES", "INT64"]),
    shape=st.lists(st.integers(-1, 9), max_size=3).map(tuple),
    optional=st.booleans(),
)
VERSIONS = st.builds(
    VersionSpec,
    name=NAMES,
    uri=NAMES.map(lambda name: f"file:///models/{name}"),
    format=st.none() | NAMES,
    trusted=st.booleans(),
    parameters=st.dictionaries(TEXTS, JSON_VALUES, max_size=3),
    signature=st.none() | st.builds(Signature, inputs=st.tuples(TENSORS)),
)


@st.composite
def models(draw: st.DrawFn) -> Model:
    versions = draw(st.lists(VERSIONS, min_size=1, max_size=3, unique_by=lambda version: version.name))
    first, last = versions[0].name, versions[-1].name
    split = draw(st.sampled_from([(), (SplitEntry(version=first, weight=100),)]))
    return Model(
        metadata=Meta(
            name=f"m-{draw(NAMES)}",
            namespace=f"n-{draw(NAMES)}",
            labels=draw(st.dictionaries(NAMES, TEXTS, max_size=3)),
            resource_version=draw(st.none() | st.integers(0, 10)),
        ),
        spec=ModelSpec(
            versions=tuple(versions),
            aliases=draw(st.sampled_from([{}, {"zz-stable": last}])),
            traffic=Traffic(
                split=split,
                sticky=draw(st.none() | st.just(Sticky(header="x-user"))),
                mirror=draw(st.none() | st.just(Mirror(version=last, percent=5))),
            ),
            scaling=Scaling(max=draw(st.integers(1, 9)), target=draw(st.floats(0.5, 100))),
            idempotent=draw(st.booleans()),
        ),
    )


@settings(max_examples=40)
@given(models())
def test_a_model_written_as_yaml_or_json_is_read_back_equal(model: Model):
    assert check(model) == ()
    assert [item.resource for item in load(dump_yaml(model))] == [model]
    assert [item.resource for item in load(json.dumps(plain(model)))] == [model]
    assert [item.resource for item in load(json.dumps(plain(model), ensure_ascii=False, indent="\t"))] == [model]


@given(JSON_VALUES)
def test_plain_values_written_as_yaml_are_read_back_equal(value: Any):
    (tree,) = read_yaml(dump_plain_yaml(value))
    assert tree.value == value
    assert tree.problems == []
