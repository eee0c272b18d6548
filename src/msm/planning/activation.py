"""What the gateway asks when it holds a request, and the answer: values shared by gateway and node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActivationRequest:
    """A request waits for `service`, for `version` (or an alias) if it named one, at most `deadline_s` seconds."""

    service: str
    version: str | None
    grpc: bool
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Activated:
    """Where the request can go on: the socket of a worker that holds `target` ("namespace/model/version").

    The rest is used when the request takes the shared cold route, which knows nothing of the model: `revision` is told
    to the client, `timeout_s` bounds the answer, `replay` allows another attempt after the worker died.
    """

    socket: str
    target: str
    revision: int | None = None
    timeout_s: float | None = None
    replay: bool = False
