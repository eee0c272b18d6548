"""Rows, tables and files as tensors of the declared names, datatypes and shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.cli.tensors import BINARY_HEADER, from_bytes, from_csv, from_json
from msm.kit.errors import InvalidInput
from msm.resources.serving import Signature, Tensor


def signature(*tensors: tuple[str, str, tuple[int, ...]], optional: str = "") -> Signature:
    return Signature(
        inputs=tuple(Tensor(name=n, datatype=d, shape=s, optional=n == optional) for n, d, s in tensors)  # type: ignore[arg-type]
    )


IRIS = signature(("x", "FP32", (-1, 4)))
TWO = signature(("age", "INT64", (-1, 1)), ("city", "BYTES", (-1, 1)))
IMAGE = signature(("image", "UINT8", (-1, -1, 3)))


def sent(body: Any) -> list[tuple[str, str, list[int], list[Any]]]:
    return [(t["name"], t["datatype"], t["shape"], t["data"]) for t in json.loads(body.content)["inputs"]]


@pytest.mark.parametrize(
    ("given_json", "declared", "expected"),
    [
        ("[[1,2,3,4]]", IRIS, [("x", "FP32", [1, 4], [1, 2, 3, 4])]),
        ("[1,2,3,4]", IRIS, [("x", "FP32", [1, 4], [1, 2, 3, 4])]),
        ("[[1,2,3,4],[5,6,7,8]]", IRIS, [("x", "FP32", [2, 4], [1, 2, 3, 4, 5, 6, 7, 8])]),
        ('{"x": [1,2,3,4]}', IRIS, [("x", "FP32", [1, 4], [1, 2, 3, 4])]),
        ('{"age": 3, "city": "Bonn"}', TWO, [("age", "INT64", [1, 1], [3]), ("city", "BYTES", [1, 1], ["Bonn"])]),
        (
            '[{"age": 3, "city": "Bonn"}, {"age": 4, "city": "Kiel"}]',
            TWO,
            [("age", "INT64", [2, 1], [3, 4]), ("city", "BYTES", [2, 1], ["Bonn", "Kiel"])],
        ),
        (
            '[[3, "Bonn"], [4, "Kiel"]]',
            TWO,
            [("age", "INT64", [2, 1], [3, 4]), ("city", "BYTES", [2, 1], ["Bonn", "Kiel"])],
        ),
        ("[[[1,2,3]]]", IMAGE, [("image", "UINT8", [1, 1, 3], [1, 2, 3])]),
        ('"text"', signature(("t", "BYTES", (-1,))), [("t", "BYTES", [1], ["text"])]),
        ("5", signature(("n", "INT64", ())), [("n", "INT64", [1], [5])]),
        ("[7]", signature(("n", "INT64", (-1,)), ("k", "INT64", (1,)), optional="k"), [("n", "INT64", [1], [7])]),
    ],
)
def test_json_becomes_tensors(
    given_json: str, declared: Signature, expected: list[tuple[str, str, list[int], list[Any]]]
):
    assert sent(from_json(given_json, declared)) == expected


@pytest.mark.parametrize(
    ("text", "declared", "part"),
    [
        ("[1", IRIS, "not JSON"),
        ("[" * 100_000, IRIS, "not JSON"),
        ("[[1,2],[3]]", IRIS, "same length"),
        ("[[1,2],3]", IRIS, "same length"),
        ("[[null,2,3,4]]", IRIS, "not all numbers"),
        ('{"y": [1]}', IRIS, '"y" is none of them'),
        ('{"age": 1}', TWO, '"city" is missing'),
        ("[[1]]", TWO, "rows of 2"),
        ("5", TWO, "rows of 2"),
        ("[1]", None, "whole request body"),
        ("[1]", Signature(), "whole request body"),
    ],
)
def test_what_cannot_be_tensors_is_refused(text: str, declared: Signature | None, part: str):
    with pytest.raises(InvalidInput) as caught:
        from_json(text, declared)
    assert part in caught.value.message


@pytest.mark.parametrize(
    ("text", "declared", "expected"),
    [
        ("1,2,3,4\n5,6,7,8\n", IRIS, [("x", "FP32", [2, 4], [1, 2, 3, 4, 5, 6, 7, 8])]),
        ("a,b,c,d\n1,2,3,4\n", IRIS, [("x", "FP32", [1, 4], [1, 2, 3, 4])]),
        (
            'city,age,other\n"Bonn, am Rhein",3,x\n',
            TWO,
            [("age", "INT64", [1, 1], [3]), ("city", "BYTES", [1, 1], ["Bonn, am Rhein"])],
        ),
        ("flag\ntrue\n0\n", signature(("flag", "BOOL", (-1,))), [("flag", "BOOL", [2], [True, False])]),
    ],
)  # fmt: skip
def test_a_table_becomes_tensors(text: str, declared: Signature, expected: list[tuple[str, str, list[int], list[Any]]]):
    assert sent(from_csv(text, declared)) == expected


@pytest.mark.parametrize(
    ("text", "declared", "part"),
    [
        ("", IRIS, "empty"),
        ("1,2\n3\n", IRIS, "row 2 of the table has 1 cells"),
        ("age,town\n1,x\n", TWO, "must name the inputs age, city"),
        ("a,b\n1,x\n", IRIS, '"x"'),
        ("age,city\n1.5,x\n", TWO, '"1.5"'),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text: str, declared: Signature, part: str):
    with pytest.raises(InvalidInput) as caught:
        from_csv(text, declared)
    assert part in caught.value.message


def test_bytes_follow_a_header_of_told_length():
    body = from_bytes(b"\xff\x00", signature(("x", "UINT8", (-1, -1))))
    head = int(body.headers[BINARY_HEADER])
    (tensor,) = json.loads(body.content[:head])["inputs"]
    assert (tensor["shape"], tensor["parameters"]) == ([1, 2], {"binary_data_size": 2})
    assert body.content[head:] == b"\xff\x00"
    with pytest.raises(InvalidInput, match="BYTES or UINT8"):
        from_bytes(b"", IRIS)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=10
    )
)
def test_any_json_is_sent_in_full_or_refused(value: Any):
    try:
        inputs = sent(from_json(json.dumps(value), IRIS))
    except InvalidInput:
        return
    size = 1
    for length in inputs[0][2]:
        size *= length
    assert size == len(inputs[0][3])
