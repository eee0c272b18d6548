"""The generate extension of the Open Inference Protocol: inputs and outputs as plain JSON values by name. Pure.

`{"text_input": "Once", "length": 20}` names inputs of the model directly, at the top or inside `parameters`; a value
stands for the smallest tensor that the signature allows: a scalar for one with a single element, nested lists for
others. Answers have `model_name`, `model_version` and the outputs by name, those of one element as scalars.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import call, tensors
from msm.runtime.protocols.call import Sent
from msm.runtime.protocols.tensors import Array
from msm.runtime.signature import Signature, Tensor

MAX_DEPTH: Final = 100
_OWN: Final = ("id", "parameters", "stream", "model")
Outputs = Mapping[str, tuple[str, Array]]


class GenerateCall(msgspec.Struct, frozen=True):
    """A decoded request: values by name, those of `parameters` apart because not all of them are inputs."""

    id: str
    values: dict[str, Any]
    parameters: dict[str, Any]
    timeout_s: float | None = None


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises InvalidInput for anything else, also for a key that is there twice."""
    if not body:
        raise InvalidInput("the body is empty, a JSON object is needed", reason="empty_body")
    try:
        found = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the JSON holds text that is not UTF-8: {error.reason}", reason="invalid_json") from error
    except RecursionError as error:
        raise InvalidInput("the JSON is nested too deep", reason="json_too_deep") from error
    except ValueError as error:  # also for a number of more digits than Python converts
        raise InvalidInput(f"invalid JSON: {call.told(str(error))}", reason="invalid_json") from error
    if not isinstance(found, dict):
        raise InvalidInput("the body is not a JSON object", reason="expected_object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidInput(f"key {key[:100]!r} is there twice in one JSON object", reason="duplicate_key")
            seen.add(key)
    return found


def _no_number(text: str) -> float:
    raise InvalidInput(f"{text} is not a number of JSON", reason="invalid_json")


def decode(body: bytes) -> GenerateCall:
    """A generate request. Raises InvalidInput."""
    found = json_object(body)
    ident = found.get("id", "")
    if not isinstance(ident, str):
        raise InvalidInput("id must be a string", reason="invalid_id")
    call.check_id(ident)
    parameters = found.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters must be an object", reason="invalid_parameter")
    values = {name: value for name, value in found.items() if name not in _OWN}
    call.check_count("inputs", len(values))
    return GenerateCall(ident, values, parameters, call.timeout_of(parameters))


def to_inputs(signature: Signature, request: GenerateCall) -> dict[str, Sent]:
    """The request's values as tensors. Raises InvalidInput naming the input."""
    declared = {tensor.name: tensor for tensor in signature.inputs}
    values = {name: value for name, value in request.parameters.items() if name in declared}
    for name in values:
        if name in request.values:
            raise call.duplicate("input", name)
    return {name: _sent(name, value, declared.get(name)) for name, value in {**request.values, **values}.items()}


def _sent(name: str, value: Any, tensor: Tensor | None) -> Sent:
    call.check_name(name)
    datatype = _guess(name, value) if tensor is None else tensor.datatype
    shape, flat = _flattened(name, value)
    if not shape:
        shape = [1] if tensor is None else list(tensor.example_shape())
        if tensors.element_count(shape, name) != 1:
            raise InvalidInput(
                f"input {name!r} must have shape {list(tensor.shape) if tensor else shape}, got a single value",
                reason="shape_mismatch",
            )
    return Sent(datatype, _array(name, datatype, flat).reshape(shape))


def _guess(name: str, value: Any) -> str:
    """The datatype of a value for an input that is not declared, by its first element."""
    while isinstance(value, list) and value:
        value = value[0]
    kinds: dict[type, str] = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}
    kind = kinds.get(type(value))
    if kind is None:
        raise InvalidInput(f"input {name!r} must be text, a number or a boolean, or lists of such", reason="wrong_type")
    return kind


def _flattened(name: str, value: Any) -> tuple[list[int], list[Any]]:
    """Shape and elements of nested lists. Raises InvalidInput when lists beside each other differ in length."""
    shape: list[int] = []
    level: list[Any] = [value]
    while level and isinstance(level[0], list):
        length = len(level[0])
        if not all(isinstance(item, list) and len(item) == length for item in level):
            raise InvalidInput(f"input {name!r}: the lists have different lengths", reason="ragged")
        shape.append(length)
        if len(shape) > MAX_DEPTH:
            raise InvalidInput(f"input {name!r} is nested more than {MAX_DEPTH} deep", reason="json_too_deep")
        level = [element for item in level for element in item]
    tensors.element_count(shape, name)
    return shape, level


def _array(name: str, datatype: str, values: Sequence[Any]) -> Array:
    dtype = tensors.dtype_of(datatype, name)
    if datatype == "BF16":
        raise InvalidInput(f"input {name!r}: BF16 has no JSON form", reason="binary_only")
    kinds: tuple[type, ...] = {"BYTES": (str,), "BOOL": (bool,)}.get(datatype, (int,))
    if datatype.startswith("FP"):
        kinds = (int, float)
    wrong = next((value for value in values if type(value) not in kinds), None)
    if wrong is not None or any(value is None for value in values):
        raise InvalidInput(
            f"input {name!r} of {datatype} holds {call.told(json.dumps(wrong)[:60])}", reason="wrong_type"
        )
    if datatype == "BYTES":
        return tensors.objects([value.encode("utf-8", "surrogatepass") for value in values])
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype)
    except OverflowError as error:
        raise _too_large(name, datatype) from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise _too_large(name, datatype)
    return array


def _too_large(name: str, datatype: str) -> InvalidInput:
    return InvalidInput(f"input {name!r} has a value that {datatype} cannot hold", reason="value_out_of_range")


def encode(prefix: bytes, ident: str, outputs: Outputs) -> bytes:
    """One answer, or the data of one event. `prefix`: `oip_json.answer_prefix` of the version.

    Raises InvalidInput for an output that is not UTF-8 text. NaN and infinities become null.
    """
    head = b'%b"id":%b,' % (prefix, orjson.dumps(ident)) if ident else prefix
    parts = [b"%b:%b" % (orjson.dumps(name), _value(name, array)) for name, (_, array) in outputs.items()]
    return b"%b%b}" % (head if parts else head.rstrip(b","), b",".join(parts))


def _value(name: str, array: Array) -> bytes:
    if array.dtype == object:
        try:
            texts = [tensors.as_bytes(element).decode() for element in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"output {name!r} holds bytes that are not UTF-8: ask for it by infer, as binary data",
                reason="output_not_text",
            ) from error
        return orjson.dumps(texts[0] if len(texts) == 1 else np.array(texts, object).reshape(array.shape).tolist())
    if array.size == 1:
        return orjson.dumps(array.ravel()[0], option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)


def join(steps: Sequence[Outputs]) -> dict[str, tuple[str, Array]]:
    """The outputs of all steps as those of one: text of one element becomes one text, the rest is put end to end."""
    if len(steps) == 1:
        return dict(steps[0])
    joined: dict[str, tuple[str, Array]] = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        found = [step[name] for step in steps if name in step]
        datatype, arrays = found[0][0], [np.atleast_1d(array) for _, array in found]
        if datatype == "BYTES" and all(array.size == 1 for array in arrays):
            text = b"".join(tensors.as_bytes(array.ravel()[0]) for array in arrays)
            joined[name] = (datatype, tensors.objects([text]).reshape(arrays[0].shape))
        elif len({array.shape[1:] for array in arrays}) == 1 and len({array.dtype for array in arrays}) == 1:
            joined[name] = (datatype, np.concatenate(arrays))
        else:
            raise InvalidInput(
                f"the steps give output {name!r} in different shapes: ask for them by generate_stream",
                reason="output_not_joinable",
            )
    return joined
