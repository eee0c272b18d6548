"""The rules between the parts of a model: each broken one is named with its path and its value."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.resources.meta import is_name
from msm.resources.serving import Model
from msm.resources.validate import check, check_change

DIGEST = "sha256:" + "a" * 64


def model(name: str = "iris", *, metadata: dict[str, Any] | None = None, **spec: Any) -> Model:
    """A model as a person would declare it; `spec` holds the outside (camelCase) names."""
    spec.setdefault("versions", [version("v1"), version("v2")])
    plain = {"metadata": {"name": name, **(metadata or {})}, "spec": spec}
    return msgspec.convert(plain, Model)


def version(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "uri": f"file:///models/{name}.onnx", **fields}


def test_a_model_that_uses_everything_is_accepted():
    accepted = model(
        metadata={"namespace": "team-a", "labels": {"task": "classification", "example.com/owner": "Zoë"}},
        versions=[
            version(
                "v1",
                format="sklearn",
                trusted=True,
                parameters={"maxBatchSize": 64, "nested": {"a": [1, None]}},
            ),
            {"name": "v2", "uri": "s3://bucket/iris/v2.onnx", "digest": DIGEST},
            {"name": "3", "uri": "https://example.com:8443/iris.onnx?x=1"},
        ],
        aliases={"stable": "v1", "canary": "v2"},
        traffic={
            "split": [{"version": "v1", "weight": 100}, {"version": "v2", "weight": 0}],
            "sticky": {"header": "x-user-id"},
            "mirror": {"version": "3", "percent": 5},
        },
        scaling={"min": 0, "max": 4, "target": 8, "idleSeconds": 900},
    )
    assert check(accepted) == ()


SPLIT = "$.spec.traffic.split"
BROKEN: list[tuple[str, Model, str, str]] = [
    ("upper case", model("Iris"), "$.metadata.name", '"Iris"'),
    ("empty name", model(""), "$.metadata.name", '""'),
    ("leading dash", model("-rf"), "$.metadata.name", '"-rf"'),
    ("dots", model("a..b"), "$.metadata.name", '"a..b"'),
    ("slash", model("a/b"), "$.metadata.name", '"a/b"'),
    ("unicode", model("модель"), "$.metadata.name", "модель"),
    ("too long", model("x" * 64), "$.metadata.name", "1 to 63"),
    ("line break at the end", model("iris\n"), "$.metadata.name", "\\n"),
    ("reserved", model("admin"), "$.metadata.name", "reserved"),
    ("namespace", model(metadata={"namespace": "Team A"}), "$.metadata.namespace", '"Team A"'),
    ("reserved namespace", model(metadata={"namespace": "v2"}), "$.metadata.namespace", "reserved"),
    ("labels", model(metadata={"labels": {str(i): "" for i in range(65)}}), "$.metadata.labels", "65"),
    ("label key", model(metadata={"labels": {"a b": "x"}}), "$.metadata.labels", '"a b"'),
    ("label value", model(metadata={"labels": {"a": "x" * 254}}), "$.metadata.labels.a", "254"),
    ("label line break", model(metadata={"labels": {"a": "x\ny"}}), "$.metadata.labels.a", "line break"),
    ("annotation key", model(metadata={"annotations": {"": "x"}}), "$.metadata.annotations", '""'),
    ("annotations", model(metadata={"annotations": {"a": "x" * 70_000}}), "$.metadata.annotations", "70001"),
    ("negative revision", model(metadata={"resourceVersion": -1}), "$.metadata.resourceVersion", "-1"),
    ("no version", model(versions=[]), "$.spec.versions", "at least one"),
    ("many versions", model(versions=[version(f"v{i}") for i in range(1001)]), "$.spec.versions", "1001"),
    ("version twice", model(versions=[version("v1"), version("v1")]), "$.spec.versions[1].name", '"v1"'),
    ("version name", model(versions=[{**version("x"), "name": "V 1"}]), "$.spec.versions[0].name", '"V 1"'),
    ("format name", model(versions=[version("v1", format="ON NX")]), "$.spec.versions[0].format", "ON NX"),
    ("alias name", model(aliases={"Stable!": "v1"}), '$.spec.aliases["Stable!"]', "Stable!"),
    ("alias like a version", model(aliases={"v2": "v1"}), "$.spec.aliases.v2", "name of a version"),
    ("alias to alias", model(aliases={"a": "b", "b": "v1"}), "$.spec.aliases.a", 'alias "b"'),
    ("alias to itself", model(aliases={"a": "a"}), "$.spec.aliases.a", 'alias "a"'),
    ("alias to nothing", model(aliases={"a": "v9"}), "$.spec.aliases.a", 'version "v9"'),
    ("many aliases", model(aliases={f"a{i}": "v1" for i in range(101)}), "$.spec.aliases", "101"),
    ("sum 99", model(traffic={"split": [{"version": "v1", "weight": 99}]}), SPLIT, "sum to 99"),
    (
        "sum 101",
        model(traffic={"split": [{"version": "v1", "weight": 100}, {"version": "v2", "weight": 1}]}),
        SPLIT,
        "sum to 101",
    ),
    ("sum 0", model(traffic={"split": [{"version": "v1", "weight": 0}]}), SPLIT, "sum to 0"),
    (
        "split twice",
        model(traffic={"split": [{"version": "v1", "weight": 50}, {"version": "v1", "weight": 50}]}),
        f"{SPLIT}[1].version",
        "2 times",
    ),
    (
        "split unknown",
        model(traffic={"split": [{"version": "v9", "weight": 100}]}),
        f"{SPLIT}[0].version",
        '"v9"',
    ),
    (
        "mirror unknown",
        model(traffic={"mirror": {"version": "shadow", "percent": 5}}),
        "$.spec.traffic.mirror.version",
        '"shadow"',
    ),
    (
        "sticky no token",
        model(traffic={"sticky": {"header": "x user"}}),
        "$.spec.traffic.sticky.header",
        "x user",
    ),
    ("sticky empty", model(traffic={"sticky": {"header": ""}}), "$.spec.traffic.sticky.header", '""'),
    (
        "sticky pseudo",
        model(traffic={"sticky": {"header": ":path"}}),
        "$.spec.traffic.sticky.header",
        ":path",
    ),
    (
        "sticky internal",
        model(traffic={"sticky": {"header": "X-MSM-Target"}}),
        "$.spec.traffic.sticky.header",
        "mesh",
    ),
    (
        "sticky secret",
        model(traffic={"sticky": {"header": "Authorization"}}),
        "$.spec.traffic.sticky.header",
        "Authorization",
    ),
    ("min over max", model(scaling={"min": 5, "max": 2}), "$.spec.scaling.min", "5 is greater than max 2"),
    ("target nan", model(scaling={"target": 1e300}), "$.spec.scaling.target", "1e+300"),
    (
        "parameters size",
        model(versions=[version("v1", parameters={"a": "x" * 70_000})]),
        "$.spec.versions[0].parameters",
        "65536",
    ),
    (
        "parameters infinite",
        model(versions=[version("v1", parameters={"a": [float("inf")]})]),
        "$.spec.versions[0].parameters",
        "inf",
    ),
    (
        "tensor twice",
        model(versions=[version("v1", signature={"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2})]),
        "$.spec.versions[0].signature.inputs[1].name",
        '"x"',
    ),
    (
        "dimension",
        model(versions=[version("v1", signature={"outputs": [{"name": "y", "datatype": "FP32", "shape": [-2]}]})]),
        "$.spec.versions[0].signature.outputs[0].shape[0]",
        "-2",
    ),
]


@pytest.mark.parametrize(("broken", "path", "part"), [pytest.param(*row[1:], id=row[0]) for row in BROKEN])
def test_a_broken_rule_is_named_once_with_its_path_and_value(broken: Model, path: str, part: str):
    problems = check(broken)
    assert [where for where, _ in problems] == [path]
    assert part in problems[0][1]


def test_all_broken_rules_are_found_at_once():
    broken = model("A", aliases={"x": "gone"}, scaling={"min": 9, "max": 1})
    paths = [path for path, _ in check(broken)]
    assert paths == ["$.metadata.name", "$.spec.aliases.x", "$.spec.scaling.min"]


def test_the_nearest_version_is_offered():
    problems = check(model(versions=[version("version-1")], aliases={"stable": "versoin-1"}))
    assert "did you mean 'version-1'?" in problems[0][1]


def test_parameters_nested_too_deep_are_refused_without_a_recursion_error():
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    plain = model(versions=[version("v1")])
    nested = msgspec.structs.replace(plain.spec.versions[0], parameters=deep)
    spec = msgspec.structs.replace(plain.spec, versions=(nested,))
    problems = check(msgspec.structs.replace(plain, spec=spec))
    assert "nested deeper than 16" in problems[0][1]


URIS: list[tuple[str, str]] = [
    ("", "empty"),
    ("models/iris.onnx", "missing"),
    ("/models/iris.onnx", "missing"),
    ("ftp://host/x", '"ftp"'),
    ("gopher://host/x", "file, http, https, s3"),
    ("data:text/plain,x", '"data"'),
    ("hf://org/model", '"hf"'),
    ("https://user:hunter2@host/x", "credentials"),
    ("s3://key:secret@bucket/x", "credentials"),
    ("http://host/\r\nSet-Cookie: a", "line break"),
    ("http://host/a b", "space"),
    ("http://host\\evil/x", "backslash"),
    ("https://host/" + "x" * 2048, "2061 characters"),
    ("https:///x", "no host"),
    ("http://[::1/x", "not a valid address"),
    ("http://host:99999/x", "not a valid address"),
    ("file://host/x", '"host"'),
    ("file:x", "absolute"),
    ("file:///", "absolute"),
    ("file:///models/../etc/passwd", "'..'"),
    ("file:///models/%2e%2e/etc/passwd", "'..'"),
    ("file:///models/a%00b", "control character"),
    ("file:///models/a#b", "fragment"),
    ("file:///models/a?b", "query"),
    ("s3://bucket", "key"),
    ("s3:///key", "bucket"),
]


@pytest.mark.parametrize(("uri", "part"), URIS)
def test_an_address_that_may_not_be_used_is_refused_with_the_rule(uri: str, part: str):
    problems = check(model(versions=[{"name": "v1", "uri": uri}]))
    assert [path for path, _ in problems] == ["$.spec.versions[0].uri"]
    assert part in problems[0][1]
    assert "hunter2" not in problems[0][1]
    assert "secret" not in problems[0][1]


@pytest.mark.parametrize(
    "uri",
    [
        "file:///models/a%20b/",
        "file://localhost/x",
        "http://127.0.0.1:9000/x?y=%20",
        "s3://b/k/l",
        "HTTPS://h/x",
    ],
)
def test_an_ordinary_address_is_accepted(uri: str):
    assert check(model(versions=[{"name": "v1", "uri": uri}])) == ()


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("uri", "file:///other", "file:///other"),
        ("format", "onnx", '"onnx"'),
        ("digest", "sha256:" + "b" * 64, "b" * 40),
        ("trusted", True, "true"),
        ("parameters", {"a": 2}, '{"a": 2}'),
        ("signature", {"inputs": []}, "signature"),
    ],
)
def test_a_version_that_keeps_its_name_keeps_what_it_is(field: str, value: Any, shown: str):
    given = version("v1", format="sklearn", digest=DIGEST, parameters={"a": 1})
    given["signature"] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}
    problems = check_change(model(versions=[given]), model(versions=[{**given, field: value}]))
    assert [path for path, _ in problems] == [f"$.spec.versions[0].{field}"]
    assert 'version "v1" is immutable' in problems[0][1]
    assert shown in problems[0][1]


def test_what_was_left_open_may_be_declared_later_but_not_taken_back():
    bare, full = version("v1"), version("v1", digest=DIGEST, format="onnx", signature={"inputs": []})
    assert check_change(model(versions=[bare]), model(versions=[full])) == ()
    fields = {path.rsplit(".", 1)[1] for path, _ in check_change(model(versions=[full]), model(versions=[bare]))}
    assert fields == {"digest", "format", "signature"}


def test_versions_may_come_go_and_change_their_order():
    old = model(versions=[version("v1"), version("v2")])
    assert check_change(old, model(versions=[version("v3"), version("v2")])) == ()


@given(st.text(max_size=70))
def test_whatever_passes_as_a_name_is_safe_in_a_path(name: str):
    if is_name(name):
        assert check(model(name)) == () or "reserved" in check(model(name))[0][1]
        assert name.isascii()
        assert not {"/", "%", "\n", ".."} & {*name, *(name[i : i + 2] for i in range(len(name)))}
    else:
        assert [path for path, _ in check(model(name))] == ["$.metadata.name"]
