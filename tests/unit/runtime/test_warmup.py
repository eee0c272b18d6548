"""First predictions before a version is ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from msm.kit.errors import InvalidInput, LoadFailed
from msm.runtime import warmup
from msm.runtime.protocols.tensors import Array
from msm.runtime.signature import Signature, Tensor

SIGNATURE = Signature((Tensor("x", "FP32", (-1, 2)),), (Tensor("y", "FP32", (-1,)),))


class Sums:
    signature = SIGNATURE
    accepts: frozenset[str] = frozenset()
    exact_outputs = True
    may_block = False

    def __init__(self) -> None:
        self.seen: list[list[list[float]]] = []

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        self.seen.append(inputs["x"].tolist())
        if (inputs["x"] < 0).any():
            raise ValueError("below zero")
        return {"y": inputs["x"].sum(axis=1, dtype=np.float32)}


def request(*data: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": list(data)}]}


def test_declared_requests_are_predicted_in_order():
    model = Sums()
    warmup.run(model, warmup.requests_of({"warmup": [request(1, 2), request(3, 4)]}), takes_zeros=True)
    assert model.seen == [[[1, 2]], [[3, 4]]]


def test_without_any_zeros_are_predicted_where_they_are_known_to_work():
    model = Sums()
    warmup.run(model, warmup.requests_of({}), takes_zeros=False)
    assert model.seen == []
    warmup.run(model, warmup.requests_of({}), takes_zeros=True)
    assert model.seen == [[[0, 0]]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (request(-1, 0), "request 1 failed: the model raised ValueError: below zero"),
        (request(1, 2, 3), "request 1 failed: input 'x'"),
        ({"inputs": []}, "request 1 failed: inputs is empty"),
    ],
)
def test_a_request_that_fails_fails_the_load_and_is_named(wrong: dict[str, Any], said: str):
    with pytest.raises(LoadFailed, match=said):
        warmup.run(Sums(), warmup.requests_of({"warmup": [request(1, 2), wrong]}), takes_zeros=True)


@pytest.mark.parametrize("wrong", [3, "x", [1], {"inputs": []}, [{}] * 101])
def test_what_is_no_list_of_requests_is_refused(wrong: object):
    with pytest.raises(InvalidInput, match="warmup"):
        warmup.requests_of({"warmup": wrong})
