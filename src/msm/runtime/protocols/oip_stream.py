"""ModelStreamInfer of the Open Inference Protocol: many messages in one call, each with one answer or several. Pure.

An answer is a `ModelStreamInferResponse`: `error_message` (field 1) or `infer_response` (field 2), which tells by the
parameter `triton_final_response` whether it is the last one for its request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError

from msm.kit.errors import InputTooLarge, Internal, MsmError, Unsupported
from msm.runtime.protocols import oip_grpc
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.tensors import Array

WANTS_EMPTY_FINAL: Final = "triton_enable_empty_final_response"
_FINAL: Final = "triton_final_response"
_ERROR_TAG: Final = b"\x0a"
_RESPONSE_TAG: Final = b"\x12"
_ENDS: Final[dict[bool, bytes]] = {
    last: pb.ModelInferResponse(parameters={_FINAL: pb.InferParameter(bool_param=last)}).SerializeToString()
    for last in (False, True)
}


class Deframer:
    """Cuts a body that comes in pieces into its gRPC messages.

    Raises Unsupported for a compressed message, InputTooLarge for one over `limit` bytes, Internal for broken framing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take `data`; the messages that are complete with it."""
        held = self._held
        held += data
        at = 0
        try:
            while len(held) - at >= 5:
                size = self._size(held[at], int.from_bytes(held[at + 1 : at + 5], "big"))
                if len(held) - at - 5 < size:
                    return
                message = bytes(held[at + 5 : at + 5 + size])
                at += 5 + size
                yield message
        finally:
            del held[:at]

    def _size(self, flag: int, size: int) -> int:
        if flag == 1:
            raise Unsupported("compressed messages are not offered: send grpc-encoding identity", reason="compressed")
        if flag:
            raise Internal("a gRPC frame begins with neither 0 nor 1", reason="invalid_frame")
        if size > self._limit:
            raise InputTooLarge(f"a message has {size} bytes, the limit is {self._limit}")
        return size

    def end(self) -> None:
        """The body has ended. Raises Internal when that is within a message."""
        if self._held:
            raise Internal("the stream ended within a message", reason="invalid_frame")


def parse(message: bytes) -> pb.ModelInferRequest:
    """One request of the stream. Raises Internal, as gRPC asks for a message that cannot be read."""
    try:
        found: pb.ModelInferRequest = pb.ModelInferRequest.FromString(message)
        return found
    except DecodeError as error:
        raise Internal("a message of the stream is not a ModelInferRequest", reason="invalid_message") from error


def wants_empty_final(message: pb.ModelInferRequest) -> bool:
    """Whether the caller wants to be told by an answer without outputs that there are no more."""
    return WANTS_EMPTY_FINAL in message.parameters and bool(message.parameters[WANTS_EMPTY_FINAL].bool_param)


def response(
    names: tuple[str, str], ident: str, outputs: Mapping[str, tuple[str, Array]] | None, *, last: bool
) -> bytes:
    """An answer as one frame. `names` are the model's and the version's; no outputs only with `last`."""
    body = oip_grpc.encode(*names, ident, outputs or {})
    # Serialised messages one after the other are one message with the fields of both.
    return oip_grpc.frame(oip_grpc.field(_RESPONSE_TAG, body + _ENDS[last]))


def failure(names: tuple[str, str], ident: str, error: MsmError) -> bytes:
    """An answer that tells of an error, as one frame; the stream goes on."""
    about: dict[str, Any] = {"model_name": names[0], "model_version": names[1], "id": ident}
    body = pb.ModelInferResponse(**about).SerializeToString() + _ENDS[True]
    text = oip_grpc.field(_ERROR_TAG, error.message.encode("utf-8", "replace"))
    return oip_grpc.frame(text + oip_grpc.field(_RESPONSE_TAG, body))
