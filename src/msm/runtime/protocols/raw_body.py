"""A body that is one tensor and nothing else (`application/octet-stream`, the raw form of the binary extension). Pure.

Its shape is the signature's, with the one dimension that may vary computed from the size. BYTES is one element, the
body as it is, without a length before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msm.kit.errors import InvalidInput, Unsupported
from msm.runtime.protocols import tensors
from msm.runtime.protocols.call import Sent
from msm.runtime.protocols.tensors import Array
from msm.runtime.signature import Signature, Tensor


def single_input(signature: Signature, what: str) -> Tensor:
    """The only input that must be sent. Raises Unsupported when there is not exactly one."""
    needed = [tensor for tensor in signature.inputs if not tensor.optional] or list(signature.inputs)
    if len(needed) != 1:
        raise Unsupported(
            f"{what} is one tensor, but the model declares {len(needed)} inputs: send application/json",
            reason="form_not_offered",
        )
    return needed[0]


def single_output(outputs: Mapping[str, tuple[str, Array]], what: str) -> tuple[str, str, Array]:
    """Name, datatype and values of the only output. Raises InvalidInput when there are several."""
    if len(outputs) != 1:
        raise InvalidInput(
            f"{what} holds one output, but there are {len(outputs)}: accept application/json",
            reason="output_not_single",
        )
    ((name, (datatype, array)),) = outputs.items()
    return name, datatype, array


def decode(body: bytes, signature: Signature) -> dict[str, Sent]:
    """The tensor as a view of `body`. Raises InvalidInput when the size fits no shape of the signature."""
    tensor = single_input(signature, "a raw body")
    if tensor.datatype == "BYTES":
        if any(dimension not in (-1, 1) for dimension in tensor.shape):
            raise InvalidInput(
                f"input {tensor.name!r} has shape {list(tensor.shape)}: a raw body is one element of BYTES",
                reason="shape_mismatch",
            )
        return {tensor.name: Sent("BYTES", tensors.objects([body]).reshape(tensor.example_shape()))}
    width = tensors.DTYPES[tensor.datatype].itemsize
    shape = _shape(tensor, len(body), width)
    return {tensor.name: Sent(tensor.datatype, tensors.read_binary(tensor.name, tensor.datatype, shape, body))}


def _shape(tensor: Tensor, size: int, width: int) -> list[int]:
    free = [place for place, dimension in enumerate(tensor.shape) if dimension == -1]
    if len(free) > 1:
        raise InvalidInput(
            f"input {tensor.name!r} has shape {list(tensor.shape)}: a raw body tells one varying dimension, not "
            f"{len(free)}",
            reason="shape_mismatch",
        )
    shape = list(tensor.shape)
    if free:
        unit = math.prod(dimension for dimension in shape if dimension != -1) * width
        if not unit or size % unit:
            raise InvalidInput(
                f"input {tensor.name!r} has shape {list(tensor.shape)} of {tensor.datatype}, so a raw body has a "
                f"multiple of {unit} bytes, but {size} came",
                reason="shape_mismatch",
            )
        shape[free[0]] = size // unit
    return shape


def encode(outputs: Mapping[str, tuple[str, Array]]) -> bytes:
    """The only output in the same form. Raises InvalidInput when there are several, or several elements of BYTES."""
    name, datatype, array = single_output(outputs, "application/octet-stream")
    if datatype != "BYTES":
        return tensors.write_binary(array)
    if array.size != 1:
        raise InvalidInput(
            f"output {name!r} has {array.size} elements of BYTES, a raw body is one: accept application/json",
            reason="output_not_single",
        )
    return tensors.as_bytes(array.reshape(-1)[0])
