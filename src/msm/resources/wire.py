"""What the HTTP API of a node says, as types: shared by the API, its client and nobody else.

Requests are manifests or small JSON objects; answers are these, or `ProblemDocument` (RFC 9457) when it failed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from msm.resources.meta import DEFAULT_NAMESPACE, Base, ObjectKey
from msm.resources.observed import Reason
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import Model, Resource, VersionPhase

ChangeAction = Literal["created", "updated", "unchanged", "deleted"]
CopyPhase = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


class ChangeReport(Base, frozen=True):
    """What was done, or would be done, to one object. `generation` counts its accepted specs."""

    kind: str
    name: str
    action: ChangeAction
    generation: int
    namespace: str = DEFAULT_NAMESPACE
    before: Resource | None = None
    after: Resource | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind, self.namespace, self.name)


class ApplyReport(Base, frozen=True):
    """The answer to apply. With `dry_run` nothing was written, and `plan` says what the node would do about it."""

    changes: tuple[ChangeReport, ...]
    plan: tuple[Reason, ...] = ()
    dry_run: bool = False


class ModelList(Base, frozen=True):
    """All models at one revision of the store: a watch from the next revision misses nothing."""

    revision: int
    items: tuple[Model, ...]


class RuntimeList(Base, frozen=True):
    """All runtimes at one revision of the store."""

    revision: int
    items: tuple[ServingRuntime, ...]


class HistoryEntry(Base, frozen=True):
    """One accepted change of an object. `at` is in seconds since the epoch, `restored` the generation that a
    roll-back brought back."""

    generation: int
    action: str
    who: str
    at: float
    restored: int | None = None


class HistoryList(Base, frozen=True):
    """The accepted changes of an object, oldest first."""

    items: tuple[HistoryEntry, ...]


class WatchItem(Base, frozen=True):
    """One change of one model; `model` is None when it was deleted."""

    revision: int
    kind: str
    name: str
    namespace: str = DEFAULT_NAMESPACE
    model: Model | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind, self.namespace, self.name)


class VersionProgress(Base, frozen=True):
    """How far a version has come; `fetched_bytes` while it is being fetched."""

    phase: VersionPhase
    fetched_bytes: int | None = None
    message: str | None = None


class ProgressReport(Base, frozen=True):
    """How far the versions of a model have come, by name. `observed` is the generation that this is about."""

    observed: int
    generation: int
    versions: dict[str, VersionProgress] = msgspec.field(default_factory=dict)


class RollbackRequest(Base, frozen=True):
    """The generation whose spec is to become the newest; None: the one before the newest."""

    to: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None = None


class Fault(Base, frozen=True):
    """One of the faults of a request."""

    path: str
    reason: str


class ProblemDocument(Base, frozen=True):
    """Why a request failed (RFC 9457). `reason` is a stable word for programs, `detail` a sentence for people."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    errors: tuple[Fault, ...] = ()
    nearest: tuple[str, ...] = ()


class IndexEntry(Base, frozen=True):
    """A version in the answer of the protocol's repository index."""

    name: str
    version: str
    state: CopyPhase
    reason: str = ""


class IndexRequest(Base, frozen=True):
    """The protocol's repository index request; with `ready` only ready versions are listed."""

    ready: bool = False
    repository_name: str | None = None


class LoadRequest(Base, frozen=True):
    """The protocol's load and unload request. The mesh knows no parameters: they are declared with the version."""

    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


TOKEN_FILE = "admin.token"  # noqa: S105 - the name of a file in the data directory
NODE_FILE = "node.json"


class NodeFile(Base, frozen=True):
    """What a running node writes into its data directory, so that commands find it."""

    api: str
    gateway: str
    pid: int
