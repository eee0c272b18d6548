"""Model services: what a person declares (`ModelSpec`) and what the mesh found out (`ModelStatus`).

A `Model` is a named service that owns immutable versions, aliases, a traffic split and scaling bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from msm.resources.meta import API_VERSION, DEFAULT_NAMESPACE, Base, Digest, Meta, ObjectKey
from msm.resources.runtimes import Quantity, ServingRuntime

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Weight = Annotated[int, msgspec.Meta(ge=0, le=100)]


class Tensor(Base, frozen=True):
    """One input or output: `shape` holds a dimension each, -1 for one that may vary."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    optional: bool = False


class Signature(Base, frozen=True):
    """The named tensors that a version takes and gives."""

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class VersionSpec(Base, frozen=True):
    """One immutable version: the artifact and how to run it.

    `format` and `signature` are found by looking at the artifact when they are not given. `digest` is
    recorded at the first fetch when it is not given, and kept in lower case. `trusted` allows formats that run
    code while loading (pickle, joblib, Python classes). `accelerate` auto has the version converted to ONNX, which
    serves in its place if it is found to answer alike and faster. `runtime` names the ServingRuntime that runs it;
    without it the built-in worker does. `memory` is the first estimate of what a copy costs in such a runtime, until it
    is measured.
    """

    name: str
    uri: str
    format: str | None = None
    digest: Digest | None = None
    trusted: bool = False
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    signature: Signature | None = None
    accelerate: Literal["auto", "off"] = "off"
    runtime: str | None = None
    memory: Quantity | None = None

    def __post_init__(self) -> None:
        if self.digest is not None and self.digest != self.digest.lower():
            msgspec.structs.force_setattr(self, "digest", self.digest.lower())  # the same digest, written otherwise


class SplitEntry(Base, frozen=True):
    """A share of the traffic, in per cent. The weights of a split sum to 100."""

    version: str
    weight: Weight


class Sticky(Base, frozen=True):
    """The unit that stays with its version: requests with the same value of this header."""

    header: str


class Mirror(Base, frozen=True):
    """A copy of some requests goes to `version`; its answers are dropped."""

    version: str
    percent: Weight


class Traffic(Base, frozen=True):
    """Which versions answer. Without a split it is the one of alias `stable`, else the newest version."""

    split: tuple[SplitEntry, ...] = ()
    sticky: Sticky | None = None
    mirror: Mirror | None = None


class Scaling(Base, frozen=True):
    """Bounds and wishes for the number of copies of each version.

    `min` 0 means lazy: loaded by the first request, unloaded after `idle_seconds` without one or when room is
    needed.
    """

    min: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    metric: Literal["concurrency"] = "concurrency"
    target: Annotated[float, msgspec.Meta(gt=0)] = 8.0
    idle_seconds: Annotated[float, msgspec.Meta(ge=1)] = 900.0


class ModelSpec(Base, frozen=True):
    """What a person declares about a model service.

    `idempotent` false switches off the replay of a request whose worker died. `timeout_seconds` bounds one
    request. `max_queue` bounds the requests that wait for a cold version.
    """

    versions: tuple[VersionSpec, ...]
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    traffic: Traffic = Traffic()
    scaling: Scaling = Scaling()
    idempotent: bool = True
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    max_queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000


VersionPhase = Literal["Pending", "Fetching", "Probing", "Valid", "Failed"]


class Acceleration(Base, frozen=True):
    """What became of `accelerate: auto`. When `used`, the converted model of `digest` serves in place of the original.

    `way` is how it was converted. On `inputs` rows all labels were equal and all scores within
    atol + rtol * |original's|; `largest_difference` of a score is absolute up to 1 and relative above. The speeds are
    the original's time divided by the converted model's, for one row and for a batch of 64.
    """

    used: bool
    reason: str
    way: str | None = None
    digest: Digest | None = None
    rtol: float | None = None
    atol: float | None = None
    largest_difference: float | None = None
    inputs: int = 0
    speed_one: float | None = None
    speed_batch: float | None = None


class VersionStatus(Base, frozen=True):
    """What the mesh found out about a version.

    `Valid` means: fetched, digest checked, loaded once in a probation process and measured there. Whether
    copies are loaded right now is the nodes' knowledge, not part of this record.
    """

    phase: VersionPhase
    digest: Digest | None = None
    format: str | None = None
    signature: Signature | None = None
    memory_bytes: int | None = None
    load_seconds: float | None = None
    predict_seconds: float | None = None
    size_bytes: int | None = None
    reason: str | None = None
    message: str | None = None
    acceleration: Acceleration | None = None


class ModelStatus(Base, frozen=True):
    """Per version what was found, and the split in force: `spec.traffic` once that is servable."""

    observed_generation: int = 0
    versions: dict[str, VersionStatus] = msgspec.field(default_factory=dict)
    traffic: tuple[SplitEntry, ...] = ()
    message: str | None = None


class Model(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename="camel",
    tag_field="kind",
    tag="Model",
):
    """A named model service."""

    metadata: Meta
    spec: ModelSpec
    status: ModelStatus | None = None
    api_version: Literal["msm/v1"] = API_VERSION
    kind: ClassVar[str] = "Model"

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind, self.metadata.namespace, self.metadata.name)

    def version(self, name: str) -> VersionSpec | None:
        """The version of that name, or None."""
        return next((v for v in self.spec.versions if v.name == name), None)


Resource = Model | ServingRuntime
KINDS: dict[str, type[Model] | type[ServingRuntime]] = {"Model": Model, "ServingRuntime": ServingRuntime}


@dataclass(frozen=True, slots=True, order=True)
class VersionKey:
    """Names one version of one model: the unit that is fetched, loaded, copied and measured.

    As text (`str`, `parse`) it is the worker's name for the version: "namespace/model/version".
    """

    namespace: str
    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.model}/{self.version}"

    @property
    def model_key(self) -> ObjectKey:
        return ObjectKey("Model", self.namespace, self.model)

    @classmethod
    def parse(cls, text: str) -> VersionKey:
        """Inverse of `str`. Raises ValueError for any other text."""
        namespace, model, version = text.split("/")
        return cls(namespace, model, version)


def service_name(key: ObjectKey) -> str:
    """The name by which requests reach a model: "iris" in the default namespace, else "team/iris"."""
    return key.name if key.namespace == DEFAULT_NAMESPACE else f"{key.namespace}/{key.name}"
