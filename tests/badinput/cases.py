"""The data files as typed values. Every file has its own kind of case; all of them say what is sent and what is right.

Bytes are written as text, as hex, or as pieces with a number of repetitions, so that a bomb is one line.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

HERE = Path(__file__).parent
Door = Literal["gateway", "worker"]
DOORS: tuple[Door, ...] = ("gateway", "worker")


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Piece(_Strict, frozen=True, kw_only=True):
    """A part of a body, `times` over."""

    text: str = ""
    hex: str = ""
    times: int = 1

    def content(self) -> bytes:
        return (self.text.encode("utf-8", "surrogatepass") + bytes.fromhex(self.hex)) * self.times


Bytes = str | Piece | list[str | Piece]


def content(spec: Bytes) -> bytes:
    """The bytes that a data file describes."""
    pieces = spec if isinstance(spec, list) else [spec]
    return b"".join(piece.encode() if isinstance(piece, str) else piece.content() for piece in pieces)


class Expect(_Strict, frozen=True, kw_only=True):
    """What is right: status (several when the catalogue names several; 0: closed without an answer), `code` for
    programs, and a regular expression that the sentence for people must match."""

    status: int | list[int]
    code: str | list[str] = msgspec.field(default_factory=list)
    message: str = ""

    @property
    def statuses(self) -> list[int]:
        return [self.status] if isinstance(self.status, int) else self.status

    @property
    def codes(self) -> list[str]:
        return [self.code] if isinstance(self.code, str) else self.code


class HttpCase(Expect, frozen=True, kw_only=True):
    """One HTTP request. Either `raw` is all of it, or it is made of the other fields.

    A body is `body`, or an inference request: `tensor` holds raw JSON texts that replace those of a valid tensor (null
    takes one away, `more` is put in as it stands), `also` is put into the top-level object, `tail` follows the JSON as
    binary data. `answer` holds regular expressions for headers of the answer, `outputs` the values that must come back.
    """

    id: str
    title: str
    through: list[Door] = msgspec.field(default_factory=lambda: list(DOORS))
    worker: Expect | None = None
    method: str = "POST"
    model: str = "perceptron"
    path: str | None = None
    headers: dict[str, str | list[str] | None] = msgspec.field(default_factory=dict)
    body: Bytes | None = None
    tensor: dict[str, str | None] | None = None
    tensors: list[dict[str, str | None]] | None = None
    also: str = ""
    tail: Bytes | None = None
    raw: Bytes | None = None
    answer: dict[str, str] = msgspec.field(default_factory=dict)
    outputs: dict[str, Any] = msgspec.field(default_factory=dict)
    closes: bool = False
    pace_s: float | None = None

    def expected(self, door: Door) -> Expect:
        """What is right at that door: the worker's own, if it differs."""
        return self.worker if door == "worker" and self.worker is not None else self


class GrpcCase(_Strict, frozen=True, kw_only=True):
    """One gRPC call.

    `request` replaces top-level fields of a valid request, in protobuf's JSON form; `body` is the message as bytes,
    `tail` follows it, `frame` is the whole body with its frame. `status` is the name (or names) of the right status.
    """

    id: str
    title: str
    status: str | list[str]
    message: str = ""
    through: list[Door] = msgspec.field(default_factory=lambda: list(DOORS))
    worker: str | list[str] | None = None
    method: str = "/inference.GRPCInferenceService/ModelInfer"
    model: str = "perceptron"
    request: dict[str, Any] = msgspec.field(default_factory=dict)
    body: Bytes | None = None
    tail: Bytes = ""
    frame: Bytes | None = None
    metadata: list[tuple[str, str | Piece]] = msgspec.field(default_factory=list)
    timeout_s: float | None = None
    gzip: bool = False

    def statuses(self, door: Door) -> list[str]:
        right = self.worker if door == "worker" and self.worker is not None else self.status
        return [right] if isinstance(right, str) else right


class ManifestCase(_Strict, frozen=True, kw_only=True):
    """One manifest: `text`, or the valid one with `spec` (lines below spec), `version` (more of the version's flow
    mapping, or instead of it what begins with name:) or `metadata` (the same of the metadata).

    `path` and `reason` describe one of the problems that must be told; without `reason` the manifest is accepted.
    """

    id: str
    title: str
    path: str = ""
    reason: str = ""
    line: int | None = None
    status: int | list[int] = 400
    text: Bytes | None = None
    spec: Bytes | None = None
    version: Bytes | None = None
    metadata: Bytes | None = None

    @property
    def accepted(self) -> bool:
        return not self.reason

    @property
    def statuses(self) -> list[int]:
        return [self.status] if isinstance(self.status, int) else self.status


class ArtifactCase(_Strict, frozen=True, kw_only=True):
    """One artifact, made by a generator (or at `uri`), and how its version must fail.

    It goes through the whole mesh, or straight to the probation process, whose limits can be set low.
    """

    id: str
    title: str
    reason: str | list[str]
    message: str = ""
    through: list[Literal["mesh", "probation"]] = msgspec.field(default_factory=lambda: ["mesh"])
    make: str | None = None
    uri: str | None = None
    format: str | None = None
    digest: str | None = None
    trusted: bool = False
    timeout_s: float = 20.0

    @property
    def reasons(self) -> list[str]:
        return [self.reason] if isinstance(self.reason, str) else self.reason


class AdminCase(Expect, frozen=True, kw_only=True):
    """One call of the node's API: `token` is the administrator's ("good"), null for none, or the text of another one.

    Paths stand below /api/v1 unless they begin with two slashes; `gateway` sends it there instead. `code` is the
    problem's `reason` (below /v2 the error's `code`).
    """

    id: str
    title: str
    method: str = "GET"
    path: str = "/models"
    token: str | None = "good"
    headers: dict[str, str | list[str]] = msgspec.field(default_factory=dict)
    body: Bytes | None = None
    answer: dict[str, str] = msgspec.field(default_factory=dict)
    gateway: bool = False


class CommandCase(_Strict, frozen=True, kw_only=True):
    """One run of the command: its arguments, and how it must end. `error` is a pattern for standard error."""

    id: str
    title: str
    arguments: list[str]
    code: int | list[int]
    error: str
    stdin: str | None = None

    @property
    def codes(self) -> list[int]:
        return [self.code] if isinstance(self.code, int) else self.code


class NotYet(_Strict, frozen=True, kw_only=True):
    """A row, or a part of one, that what exists cannot be asked yet."""

    row: str
    reason: str


K = TypeVar("K", HttpCase, GrpcCase, ManifestCase, ArtifactCase, AdminCase, CommandCase, NotYet)


@cache
def read(name: str, kind: type[K]) -> tuple[K, ...]:
    """The cases of `name`.yaml."""
    return tuple(msgspec.yaml.decode((HERE / f"{name}.yaml").read_bytes(), type=list[kind]))  # type: ignore[valid-type]
