"""The named tensors that a version takes and gives. Pure; the wire form is the one of the declared resources."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
MAX_RANK = 32


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input or output: `shape` holds a dimension each, -1 for one that may vary."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    datatype: Datatype
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=-1)], ...], msgspec.Meta(max_length=MAX_RANK)]
    optional: bool = False

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` may stand for this tensor."""
        if len(shape) != len(self.shape):
            return False
        for want, got in zip(self.shape, shape, strict=True):  # noqa: SIM110 - twice as fast as all() on this path
            if want not in (-1, got):
                return False
        return True

    def example_shape(self) -> tuple[int, ...]:
        """The smallest shape of this tensor with something in it: 1 for each dimension that may vary."""
        return tuple(1 if dimension == -1 else dimension for dimension in self.shape)


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Inputs and outputs of a version. No inputs at all means that the version takes whatever is sent."""

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    @property
    def row_wise(self) -> bool:
        """Whether requests may be joined along the first dimension: it varies for every tensor, and all are known."""
        tensors = (*self.inputs, *self.outputs)
        return bool(self.inputs) and bool(self.outputs) and all(tensor.shape[:1] == (-1,) for tensor in tensors)

    @property
    def fixed_rows(self) -> bool:
        """Whether beyond the first dimension nothing of the inputs varies: then any two requests can be joined."""
        return all(-1 not in tensor.shape[1:] and not tensor.optional for tensor in self.inputs)
