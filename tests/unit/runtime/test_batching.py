from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.kit.errors import Internal
from msm.runtime import batching
from msm.runtime.batching import Limits, Shape
from msm.runtime.signature import Signature, Tensor

ROWS = Signature((Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1,)),))
SHAPES = st.builds(Shape, st.integers(0, 20), st.integers(0, 1000), st.sampled_from([None, (), (("x", (3,)),)]))


@given(st.lists(SHAPES, min_size=1, max_size=30), st.integers(1, 40), st.integers(1, 5000))
def test_a_batch_is_the_longest_allowed_beginning_of_the_queue(waiting: list[Shape], rows: int, size: int) -> None:
    limits = Limits(rows, size)

    def allowed(batch: list[Shape]) -> bool:
        return len(batch) == 1 or (
            batch[0].kind is not None
            and {shape.kind for shape in batch} == {batch[0].kind}
            and sum(shape.rows for shape in batch) <= rows
            and sum(shape.size for shape in batch) <= size
        )

    count = batching.cut(waiting, limits)
    assert allowed(waiting[:count])
    assert count == len(waiting) or not allowed(waiting[: count + 1])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_scatter_undoes_join(rows: list[int]) -> None:
    inputs = [{"x": np.random.default_rng(count).random((count, 3))} for count in rows]
    joined = batching.join(inputs)
    parts = batching.scatter({"y": ("FP64", joined["x"])}, rows)
    for part, given_ in zip(parts, inputs, strict=True):
        np.testing.assert_array_equal(part["y"][1], given_["x"])


def test_an_output_that_lost_rows_is_not_scattered() -> None:
    with pytest.raises(Internal, match=r"'y'.*\[3\].*4 rows") as refused:
        batching.scatter({"y": ("FP64", np.zeros(3))}, [2, 2])
    assert refused.value.reason == "model_output_invalid"


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        ({"x": np.zeros((2, 4))}, ()),
        ({"x": np.zeros((0, 4))}, None),
        ({"x": np.zeros((2, 4)), "z": np.zeros((3, 4))}, None),
    ],
)
def test_only_requests_with_rows_are_joined(inputs: dict[str, np.ndarray], kind: object) -> None:
    assert batching.shape_of(inputs, uniform=True).kind == kind


def test_requests_whose_rows_differ_in_shape_are_not_joined() -> None:
    wide, narrow = ({"x": np.zeros((1, width))} for width in (3, 5))
    kinds = {batching.shape_of(inputs, uniform=False).kind for inputs in (wide, narrow)}
    assert len(kinds) == 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "row_wise", "fixed"),
    [
        ([(-1, 4)], [(-1,)], True, True),
        ([(-1, -1)], [(-1,)], True, False),
        ([(1, 4)], [(-1,)], False, True),
        ([(-1, 4)], [(3,)], False, True),
        ([()], [(-1,)], False, True),
        ([(-1, 4), (-1, 2)], [(-1,), (-1, 3)], True, True),
    ],
)
def test_which_signatures_allow_joining(inputs: list, outputs: list, row_wise: bool, fixed: bool) -> None:
    signature = Signature(
        tuple(Tensor(f"x{index}", "FP32", shape) for index, shape in enumerate(inputs)),
        tuple(Tensor(f"y{index}", "FP32", shape) for index, shape in enumerate(outputs)),
    )
    assert (signature.row_wise, signature.fixed_rows) == (row_wise, fixed)


def test_no_rows_in_give_no_rows_out_when_the_signature_tells_their_shape() -> None:
    outputs = batching.empty_outputs(ROWS)
    assert outputs is not None
    assert (outputs["y"][0], outputs["y"][1].shape) == ("FP32", (0,))
    unknown = Signature(ROWS.inputs, (Tensor("y", "FP32", (-1, -1)),))
    assert batching.empty_outputs(unknown) is None
