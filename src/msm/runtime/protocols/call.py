"""What a decoded inference request is, whatever protocol brought it; and the rules all protocols share. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from msm.kit.errors import InvalidInput
from msm.runtime.protocols.tensors import Array

MAX_ID: Final = 256
MAX_NAME: Final = 256
MAX_TENSORS: Final = 1_000
DEFAULT_PRIORITY: Final = 5
LEAST_URGENT: Final = 9
MAX_TIMEOUT_S: Final = 86_400.0


class Sent(msgspec.Struct, frozen=True, gc=False):
    """One tensor as it came: the datatype that the caller named, and the values."""

    datatype: str
    array: Array


class WantedOutput(msgspec.Struct, frozen=True, gc=False):
    """One output that the caller asks for; `binary` None leaves the form to the request's default."""

    name: str
    binary: bool | None


class InferenceCall(msgspec.Struct, frozen=True):
    """A decoded inference request.

    `outputs` None means all outputs. `timeout_s` is the caller's own limit, if any. `binary` is the form of outputs
    that do not say (REST only). Of two waiting requests the one with the smaller `priority` is run first.
    """

    id: str
    inputs: dict[str, Sent]
    outputs: tuple[WantedOutput, ...] | None = None
    timeout_s: float | None = None
    binary: bool = False
    priority: int = DEFAULT_PRIORITY


def check_id(text: str) -> None:
    """Raises InvalidInput for a request id that is too long or could break a line of a log."""
    if len(text) > MAX_ID or not text.isprintable():
        raise InvalidInput(f"id must have at most {MAX_ID} characters, all printable", reason="invalid_id")


def told(text: str) -> str:
    """What a stranger wrote, for a sentence of ours: on one line, without control characters, its middle left out."""
    if len(text) > 200:
        text = f"{text[:120]}…{text[-60:]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def check_name(name: str) -> None:
    """Raises InvalidInput for the name of a tensor that is longer than any signature may have."""
    if len(name) > MAX_NAME:
        raise InvalidInput(
            f"input {name[:100]!r}… has a name of {len(name)} characters, at most {MAX_NAME} are allowed",
            reason="invalid_name",
        )


def check_count(what: str, count: int) -> None:
    """Raises InvalidInput when a request names more tensors than any model has."""
    if count > MAX_TENSORS:
        raise InvalidInput(f"{count} {what} were sent, at most {MAX_TENSORS} are allowed", reason=f"too_many_{what}")


def duplicate(what: str, name: str) -> InvalidInput:
    """The error for an input or output that is named twice."""
    return InvalidInput(f"{what} {name[:100]!r} is named twice", reason=f"duplicate_{what}")


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """The caller's own limit in seconds from the request parameter `timeout` (microseconds), or None.

    Also checks the types of `priority` and of `sequence_id`, which the worker ignores. Unknown ones are allowed.
    """
    for name, kinds in (("timeout", (int,)), ("priority", (int,)), ("sequence_id", (int, str))):
        value = parameters.get(name)
        if value is not None and (type(value) not in kinds):
            wanted = " or ".join("integer" if kind is int else "string" for kind in kinds)
            raise InvalidInput(f"parameter {name!r} must be of type {wanted}", reason="invalid_parameter")
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if timeout <= 0:
        raise InvalidInput(
            f"parameter 'timeout' is {told(str(timeout))}, it must be a number of microseconds above 0",
            reason="invalid_parameter",
        )
    return float(min(timeout, int(MAX_TIMEOUT_S) * 1_000_000)) / 1e6


def priority_of(parameters: Mapping[str, Any]) -> int:
    """The urgency from the request parameter `priority`: 1 is run first, 9 last, 0 and none mean 5.

    Larger numbers count as 9. To be called after `timeout_of`, which checks its type. Raises InvalidInput below 0.
    """
    priority: int = parameters.get("priority") or DEFAULT_PRIORITY
    if priority < 0:
        raise InvalidInput(
            f"parameter 'priority' is {told(str(priority))}, it must be 0 or a level from 1 (first) to 9",
            reason="invalid_parameter",
        )
    return min(priority, LEAST_URGENT)
