"""Are the tensors of a request those that the version takes? Pure; stands between the codecs and the queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from msm.kit.errors import Internal, InvalidInput
from msm.runtime.protocols.call import Sent, WantedOutput
from msm.runtime.protocols.tensors import DTYPES, Array, wire_array
from msm.runtime.signature import Signature, Tensor


def check_inputs(signature: Signature, accepts: frozenset[str], sent: Mapping[str, Sent]) -> dict[str, Array]:
    """The inputs by name, in the signature's datatypes. Raises InvalidInput naming input, expected and got.

    `accepts` holds the datatypes that the version takes in place of the declared ones; they are converted here.
    """
    if not signature.inputs:
        return {name: tensor.array for name, tensor in sent.items()}
    inputs: dict[str, Array] = {}
    for tensor in signature.inputs:
        came = sent.get(tensor.name)
        if came is None:
            if tensor.optional:
                continue
            raise InvalidInput(f"input {tensor.name!r} is missing, got {_names(sent)}", reason="missing_input")
        array = came.array
        if came.datatype != tensor.datatype:
            array = _convert(tensor, came, accepts)
        if not tensor.allows(array.shape):
            raise InvalidInput(
                f"input {tensor.name!r} must have shape {list(tensor.shape)}, got {list(array.shape)}",
                reason="shape_mismatch",
            )
        inputs[tensor.name] = array
    if len(inputs) != len(sent):
        extra = next(name for name in sent if name not in inputs)
        raise InvalidInput(
            f"there is no input {extra[:100]!r}, the inputs are {_names(t.name for t in signature.inputs)}",
            reason="unknown_input",
        )
    return inputs


def _convert(tensor: Tensor, came: Sent, accepts: frozenset[str]) -> Array:
    if came.datatype not in accepts:
        raise InvalidInput(
            f"input {tensor.name!r} must have datatype {tensor.datatype}, got {came.datatype}",
            reason="datatype_mismatch",
        )
    with np.errstate(over="ignore"):
        array = came.array.astype(DTYPES[tensor.datatype])
    if came.datatype == "FP64" and np.isinf(array).any() and not np.isinf(came.array).any():
        raise InvalidInput(
            f"input {tensor.name!r} has a value that {tensor.datatype} cannot hold", reason="value_out_of_range"
        )
    return array


def _names(names: Any) -> str:
    found = [repr(name[:100]) for name in names]
    return ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")


def check_wanted(signature: Signature, wanted: tuple[WantedOutput, ...] | None) -> None:
    """Raises InvalidInput when an output is asked for that the signature does not have."""
    if wanted is None or not signature.outputs:
        return
    known = [tensor.name for tensor in signature.outputs]
    for output in wanted:
        if output.name not in known:
            raise InvalidInput(
                f"there is no output {output.name[:100]!r}, the outputs are {_names(known)}", reason="unknown_output"
            )


def check_outputs(signature: Signature, given: Any, *, exact: bool = True) -> dict[str, tuple[str, Array]]:
    """What the model gave as (datatype, array) by name, in the signature's order.

    Raises Internal (`model_output_invalid`) when it is not what the signature says; with `exact` false its shapes are
    hints only.
    """
    if not isinstance(given, Mapping):
        raise _invalid(f"the model gave {type(given).__name__}, which is not a dict of arrays")
    if not signature.outputs:
        if not all(isinstance(name, str) for name in given):
            raise _invalid("the model gave an output whose name is not text")
        return {name: wire_array(name, value) for name, value in given.items()}
    outputs: dict[str, tuple[str, Array]] = {}
    for tensor in signature.outputs:
        if tensor.name not in given:
            if tensor.optional:
                continue
            raise _invalid(f"the model did not give output {tensor.name!r}")
        datatype, array = wire_array(tensor.name, given[tensor.name])
        if datatype == "UINT16" and tensor.datatype == "BF16":
            datatype = "BF16"  # NumPy lacks it: a model gives its bits
        if datatype != tensor.datatype:
            raise _invalid(f"output {tensor.name!r} must have datatype {tensor.datatype}, the model gave {datatype}")
        if exact and not tensor.allows(array.shape):
            raise _invalid(
                f"output {tensor.name!r} must have shape {list(tensor.shape)}, the model gave {list(array.shape)}"
            )
        outputs[tensor.name] = (datatype, array)
    if len(outputs) != len(given):
        extra = next(name for name in given if name not in outputs)
        raise _invalid(f"the model gave output {str(extra)[:100]!r}, which its signature does not have")
    return outputs


def _invalid(message: str) -> Internal:
    return Internal(message, reason="model_output_invalid")
