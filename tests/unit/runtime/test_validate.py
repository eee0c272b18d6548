from __future__ import annotations

import numpy as np
import pytest

from msm.kit.errors import Internal, InvalidInput
from msm.runtime.protocols.call import Sent, WantedOutput
from msm.runtime.protocols.tensors import objects
from msm.runtime.signature import Signature, Tensor
from msm.runtime.validate import check_inputs, check_outputs, check_wanted

SIGNATURE = Signature(
    (Tensor("x", "FP32", (-1, 4)), Tensor("mask", "BOOL", (-1,), optional=True)),
    (Tensor("y", "FP32", (-1,)), Tensor("names", "BYTES", (-1,), optional=True)),
)
NONE: frozenset[str] = frozenset()
X = Sent("FP32", np.zeros((2, 4), np.float32))


def test_an_optional_input_may_be_absent() -> None:
    assert set(check_inputs(SIGNATURE, NONE, {"x": X})) == {"x"}
    assert set(check_inputs(SIGNATURE, NONE, {"x": X, "mask": Sent("BOOL", np.zeros(2, bool))})) == {"x", "mask"}


@pytest.mark.parametrize(
    ("sent", "reason", "message"),
    [
        ({}, "missing_input", "'x' is missing"),
        ({"X": X}, "missing_input", "'x' is missing, got 'X'"),
        ({"x": X, "z": X}, "unknown_input", "'z', the inputs are 'x', 'mask'"),
        (
            {"x": Sent("INT64", np.zeros((1, 4), np.int64))},
            "datatype_mismatch",
            "'x' must have datatype FP32, got INT64",
        ),
        ({"x": Sent("FP32", np.zeros((1, 3)))}, "shape_mismatch", r"'x' must have shape \[-1, 4\], got \[1, 3\]"),
        ({"x": Sent("FP32", np.zeros(4))}, "shape_mismatch", r"got \[4\]"),
    ],
)
def test_a_wrong_input_is_named_with_what_was_expected_and_what_came(
    sent: dict[str, Sent], reason: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        check_inputs(SIGNATURE, NONE, sent)
    assert refused.value.reason == reason


def test_accepted_datatypes_are_converted_and_must_fit() -> None:
    accepts = frozenset({"FP64", "INT32"})
    converted = check_inputs(SIGNATURE, accepts, {"x": Sent("FP64", np.full((1, 4), 0.5))})["x"]
    assert converted.dtype == np.float32
    with pytest.raises(InvalidInput, match="cannot hold"):
        check_inputs(SIGNATURE, accepts, {"x": Sent("FP64", np.full((1, 4), 1e300))})
    infinite = check_inputs(SIGNATURE, accepts, {"x": Sent("FP64", np.full((1, 4), np.inf))})["x"]
    assert np.isinf(infinite).all()


def test_a_version_without_inputs_takes_what_is_sent() -> None:
    assert set(check_inputs(Signature(), NONE, {"a": X, "b": X})) == {"a", "b"}


def test_an_unknown_output_is_refused() -> None:
    check_wanted(SIGNATURE, None)
    check_wanted(SIGNATURE, (WantedOutput("y", None),))
    with pytest.raises(InvalidInput, match="'z', the outputs are 'y', 'names'"):
        check_wanted(SIGNATURE, (WantedOutput("z", None),))


def test_outputs_come_in_the_order_of_the_signature_with_their_datatypes() -> None:
    given = {"names": np.array(["a", "b"]), "y": np.zeros(2, np.float32)}
    outputs = check_outputs(SIGNATURE, given)
    assert [(name, datatype) for name, (datatype, _) in outputs.items()] == [("y", "FP32"), ("names", "BYTES")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "NoneType"),
        ({}, "'y'"),
        ({"y": np.zeros(2)}, "'y' must have datatype FP32, the model gave FP64"),
        ({"y": np.zeros((2, 3), np.float32)}, r"'y' must have shape \[-1\], the model gave \[2, 3\]"),
        ({"y": [[1.0], [1.0, 2.0]]}, "'y' of the model is ragged"),
        ({"y": np.zeros(2, np.float32), "z": 1}, "'z'"),
        ({"y": np.zeros(2, np.complex64)}, "complex64"),
    ],
)
def test_a_wrong_output_is_the_models_fault(given: object, message: str) -> None:
    with pytest.raises(Internal, match=message) as refused:
        check_outputs(SIGNATURE, given)
    assert refused.value.reason == "model_output_invalid"


def test_shapes_that_are_hints_do_not_bind() -> None:
    assert check_outputs(SIGNATURE, {"y": np.zeros((2, 3), np.float32)}, exact=False)["y"][1].shape == (2, 3)


def test_lists_scalars_and_other_byte_orders_become_tensors() -> None:
    given = {"a": [1, 2], "b": 2.5, "c": np.array([1], ">i4"), "d": objects([b"x", "y"]), "e": np.zeros((4, 4))[:, 1]}
    outputs = check_outputs(Signature(), given)
    assert {name: datatype for name, (datatype, _) in outputs.items()} == {
        "a": "INT64", "b": "FP64", "c": "INT32", "d": "BYTES", "e": "FP64",
    }  # fmt: skip
    assert outputs["c"][1].tolist() == [1]
    assert outputs["e"][1].flags.c_contiguous
