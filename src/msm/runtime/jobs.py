"""Inference requests that wait for their version, one class for each form of answer."""

from __future__ import annotations

from typing import Any

from msm.http.request import Request
from msm.kit.errors import MsmError, Unavailable
from msm.runtime import answers
from msm.runtime.answers import Origin
from msm.runtime.batching import Outputs
from msm.runtime.protocols.call import InferenceCall
from msm.runtime.protocols.rest_bodies import Form
from msm.runtime.waiting import Job


def error_headers(error: MsmError, source: Origin | None) -> bytes:
    """Who refused it, and whether another worker may do better."""
    headers = b"" if source is None else source.headers
    return headers + answers.RETRIABLE if isinstance(error, Unavailable) else headers


class InferJob(Job):
    """A request that waits for its version."""

    __slots__ = ("call", "request", "source")

    def __init__(self, inputs: dict[str, Any], request: Request, source: Origin, call: InferenceCall) -> None:
        super().__init__(inputs, call.priority)
        self.request = request
        self.source = source
        self.call = call

    @property
    def abandoned(self) -> bool:
        return self.request.done

    def fail(self, error: MsmError) -> None:
        request = self.request
        request.respond(answers.refusal(error, error_headers(error, self.source), grpc=request.is_grpc))


class RestJob(InferJob):
    """A request over REST."""

    __slots__ = ()

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.rest_inference(self.source, self.call, outputs))


class FormJob(InferJob):
    """A request over REST whose answer has a form of its own."""

    __slots__ = ("form",)

    def __init__(
        self, inputs: dict[str, Any], request: Request, source: Origin, wanted: tuple[InferenceCall, Form]
    ) -> None:
        super().__init__(inputs, request, source, wanted[0])
        self.form = wanted[1]

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.form_inference(self.source, self.call, outputs, self.form))


class PredictJob(InferJob):
    """A prediction of KServe v1."""

    __slots__ = ()

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.v1_prediction(self.source, outputs))


class GrpcJob(InferJob):
    """A request over gRPC."""

    __slots__ = ()

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.grpc_inference(self.source, self.call, outputs))
