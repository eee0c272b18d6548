"""What is wrong with a manifest is told completely, with its place; nothing in it can hurt the reader."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.kit.errors import InputTooLarge, InvalidInput
from msm.resources.manifest import load

HEAD = "apiVersion: msm/v1\nkind: Model\nmetadata: {name: iris}\n"
GOOD = HEAD + "spec:\n  versions:\n  - {name: v1, uri: 'file:///m'}\n"


def faults(text: str | bytes) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as caught:
        load(text)
    return list(caught.value.problems)


ONE_FAULT = [
    ("unknown field", GOOD + "  aliasses: {}\n", "$.spec.aliasses", "line 7", "did you mean 'aliases'?"),
    ("wrong case", GOOD + "  timeoutseconds: 3\n", "$.spec.timeoutseconds", "line 7", "'timeoutSeconds'"),
    ("snake case", GOOD + "  max_queue: 3\n", "$.spec.max_queue", "line 7", "'maxQueue'"),
    ("far from all", GOOD + "  zzz: 3\n", "$.spec.zzz", "line 7", "known are versions, aliases"),
    ("merge key", GOOD + "  <<: {}\n", '$.spec["<<"]', "line 7", "unknown"),
    ("prototype", GOOD + "  __proto__: {}\n", "$.spec.__proto__", "line 7", "unknown"),
    ("duplicate key", GOOD + "  versions: []\n", "$.spec.versions", "line 7", "given before, on line 5"),
    ("norway", GOOD + "  idempotent: no\n", "$.spec.idempotent", "line 7", 'the string "no"'),
    ("number as string", GOOD + "  aliases: {stable: 1}\n", "$.spec.aliases.stable", "line 7", "write it in quotes"),
    ("number as key", GOOD + "  aliases: {1: v1}\n", '$.spec.aliases["1"]', "line 7", "the key 1 is not a string"),
    ("null", GOOD + "  scaling: {min: }\n", "$.spec.scaling.min", "line 7", "got nothing"),
    ("float for whole", GOOD + "  scaling: {min: 1.0}\n", "$.spec.scaling.min", "line 7", "whole number"),
    ("bool for whole", GOOD + "  scaling: {min: true}\n", "$.spec.scaling.min", "line 7", "got true"),
    ("list for mapping", GOOD + "  scaling: []\n", "$.spec.scaling", "line 7", "expected a mapping, got a list"),
    ("mapping for list", HEAD + "spec:\n  versions: {}\n", "$.spec.versions", "line 5", "expected a list"),
    ("too large", GOOD + "  scaling: {max: 1000000}\n", "$.spec.scaling.max", "line 7", "at most 1000"),
    ("max 0", GOOD + "  scaling: {max: 0}\n", "$.spec.scaling.max", "line 7", "at least 1"),
    ("target 0", GOOD + "  scaling: {target: 0}\n", "$.spec.scaling.target", "line 7", "more than 0"),
    ("nan", GOOD + "  scaling: {target: .nan}\n", "$.spec.scaling.target", "line 7", ".nan"),
    ("infinite", GOOD + "  scaling: {target: 1e999}\n", "$.spec.scaling.target", "line 7", "1e999"),
    ("literal", GOOD + "  scaling: {metric: concurency}\n", "$.spec.scaling.metric", "line 7", "'concurrency'"),
    ("missing", HEAD + "spec: {}\n", "$.spec.versions", "line 4", '"versions" is missing'),
    ("no spec", HEAD, "$.spec", "line 1", '"spec" is missing'),
    (
        "digest",
        HEAD + "spec:\n  versions: [{name: v1, uri: 'file:///m', digest: 'md5:1'}]\n",
        "$.spec.versions[0].digest",
        "line 5",
        "sha256",
    ),
    ("no version", "kind: Model\n", "$.apiVersion", "line 1", "supported are Model, ServingRuntime of msm/v1"),
    ("newer version", "apiVersion: msm/v2\nkind: Model\n", "$.apiVersion", "line 1", '"msm/v2" is unknown; supported'),
    ("unknown kind", "apiVersion: msm/v1\nkind: Modell\n", "$.kind", "line 2", "did you mean 'Model'?"),
    ("kind a list", "apiVersion: msm/v1\nkind: []\n", "$.kind", "line 2", "unknown"),
    ("no mapping", "just text\n", "$", "line 1", '"just text"'),
    ("alias", "a: &x [1]\nb: *x\n", "$", "line 2", "alias *x is not allowed"),
    ("tag", GOOD + "  maxQueue: !!int 7\n", "$.spec.maxQueue", "line 7", "tag"),
    ("python tag", "!!python/object/apply:os.system [id]\n", "$", "line 1", "tag"),
    ("tab", "apiVersion: msm/v1\n\tkind: Model\n", "$", "line 2", "not YAML"),
    ("control character", "apiVersion: \x00\n", "$", "line 1", "character"),
    ("not utf-8", b"apiVersion: \xff", "$", "line 1", "UTF-8"),
    ("surrogate", "apiVersion: \ud800", "$", "line 1", "UTF-8"),
    ("empty", "", "$", "empty", "empty"),
    ("only comments", "# nothing\n---\n", "$", "empty", "empty"),
    ("nested", "[" * 1000, "$", "line 1", "deeper than 32"),
    ("complex key", "? {a: b}\n: c\n", "$", "line 1", "key"),
    ("JSON comma", '{"apiVersion": "msm/v1",\n"kind": "Model",\n"a" "b"}', "$", "line 3", "expected ':'"),
    (
        "JSON duplicate",
        '{"apiVersion": "msm/v1",\n "apiVersion": "msm/v1",\n "kind": "X"}',
        "$.apiVersion",
        "line 2",
        "before",
    ),
    ("JSON trailing", '{"apiVersion": "msm/v1"} "x"', "$", "line 1", "follows"),
    ("JSON surrogate", '{"apiVersion": "\\ud800"}', "$", "line 1", "surrogate"),
    ("JSON number", '{"apiVersion": 1e999}', "$.apiVersion", "line 1", "1e999"),
]


@pytest.mark.parametrize(("text", "path", "line", "part"), [pytest.param(*row[1:], id=row[0]) for row in ONE_FAULT])
def test_a_fault_is_told_with_its_path_line_and_value(text: str | bytes, path: str, line: str, part: str):
    found = faults(text)
    assert found[0][0] == path
    assert line in found[0][1]
    assert part in found[0][1]


def test_all_faults_of_all_documents_are_told_at_once():
    text = GOOD + "  maxqueue: 1\n  idempotent: yes\n---\n" + GOOD.replace("iris", "Other")
    found = faults(text)
    assert [path for path, _ in found] == ["$.spec.maxqueue", "$.spec.idempotent", "$.metadata.name"]
    assert "document 1, line 7" in found[0][1]
    assert "document 2, line 12" in found[2][1]


def test_rules_between_parts_have_lines_too():
    text = GOOD + "  traffic:\n    split:\n    - {version: v1, weight: 90}\n    - {version: v9, weight: 9}\n"
    assert [(path, said.split(":")[0]) for path, said in faults(text)] == [
        ("$.spec.traffic.split", "line 8"),
        ("$.spec.traffic.split[1].version", "line 10"),
    ]


def test_the_message_alone_names_source_place_rule_and_value():
    with pytest.raises(
        InvalidInput, match=r"iris\.yaml: line 7: the field \"maxqueue\".*maxQueue.*\[\$\.spec\.maxqueue"
    ):
        load(GOOD + "  maxqueue: 1\n", source="iris.yaml")


def test_a_resource_declared_twice_is_refused():
    found = faults(GOOD + "---\n" + GOOD)
    assert "model/iris is declared again" in found[0][1]


def test_the_size_is_limited_exactly():
    padding = 1024 * 1024 - len(GOOD) - 2
    assert load(GOOD + "#" + "x" * padding + "\n")
    with pytest.raises(InputTooLarge, match="1048577"):
        load(GOOD + "#" + "x" * (padding + 1) + "\n")


def test_the_number_of_values_is_limited():
    assert "50000 values" in faults("a: [" + "1," * 50_001 + "]")[0][1]


def test_at_most_fifty_faults_are_told():
    assert len(faults(GOOD + "".join(f"  unknown{i}: 1\n" for i in range(200)))) == 50


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a]\n" for i in range(1000)),
        "[" * 500_000,
        "{" * 500_000,
        "- " * 400_000,
        "? " * 400_000,
        '{"a":' * 150_000,
        "a: " + "9" * 1_000_000,
        "a: '" + "\\" * 1_000_000,
        "&a " * 300_000,
        "[" + "{}," * 300_000 + "]",
    ],
    ids=["aliases", "lists", "mappings", "dashes", "questions", "JSON", "digits", "quotes", "anchors", "items"],
)
def test_a_bomb_costs_little_and_is_refused(text: str):
    begun = time.process_time()
    assert faults(text)
    assert time.process_time() - begun < 2


def is_accepted_or_refused_in_sentences(text: str | bytes) -> bool:
    """Any other exception than InvalidInput goes through and fails the test."""
    try:
        return bool(load(text))
    except InvalidInput as error:
        return all(path.startswith("$") and sentence for path, sentence in error.problems)


@given(st.text(max_size=300) | st.binary(max_size=200))
def test_no_text_raises_anything_but_invalid_input(text: str | bytes):
    assert is_accepted_or_refused_in_sentences(text)


PIECES = st.sampled_from(
    [*"{}[]:,-?*&!|>'\"%@`# \n\t", "apiVersion: ", "msm/v1", "kind: Model", "metadata:", "spec:", "versions:", "  ",
     "- ", "name: ", "---\n", "1e3", "null", "&a", "*a", "!!str", "<<: ", "\\u12", "é", "\x85", "\u2028"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=40).map("".join))
def test_no_manifest_like_text_raises_anything_but_invalid_input(text: str):
    assert is_accepted_or_refused_in_sentences(text)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, JSON_VALUES)
def test_no_values_in_a_model_raise_anything_but_invalid_input(metadata: object, spec: object):
    text = json.dumps({"apiVersion": "msm/v1", "kind": "Model", "metadata": metadata, "spec": spec})
    assert is_accepted_or_refused_in_sentences(text)
