"""External model servers: how one is started, how models get into it, and what it can serve (`ServingRuntime`).

A version names a runtime in `spec.versions[].runtime`: the one of that name in the model's own namespace, else in the
default one. A version without one is run by the built-in worker.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import msgspec

from msm.resources.meta import API_VERSION, DEFAULT_NAMESPACE, Base, Meta, ObjectKey

Adapter = Literal["mlserver", "triton", "oip", "process"]
Protocol = Literal["oip", "openai"]
Quantity = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,11}(Ki|Mi|Gi|Ti|k|M|G|T)?\Z")]

PLACEHOLDERS = ("http_port", "grpc_port", "metrics_port", "repository", "model_dir", "name")
PLACEHOLDER = re.compile(r"\{([a-z_]*)\}")
# Formats that a server reads without running code from the artifact; all others need `trusted: true`.
_DATA_ONLY: dict[str, frozenset[str]] = {
    "mlserver": frozenset({"xgboost", "lightgbm", "catboost"}),
    "triton": frozenset({"onnx", "tensorrt", "openvino", "torchscript", "tensorflow"}),
}
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"([0-9]+)([A-Za-z]*)")


class ServingRuntimeSpec(Base, frozen=True):
    """How an external server is run.

    `adapter` says how models get into it: "mlserver" and "triton" write that server's own model folders, "oip" puts
    the artifact into the repository as it is; all three load by the repository extension of the Open Inference
    Protocol. "process" starts the command once for each model. `multi_model` repeats that for the reader and must
    agree. `command` is a list of arguments whose first is an absolute path; no shell sees it. In it and in `env`,
    `{http_port}`, `{grpc_port}`, `{metrics_port}`, `{repository}`, `{model_dir}` and `{name}` are replaced. `env` is
    all the environment that the server gets besides PATH, HOME, LANG and TMPDIR. `readiness` is the path that answers
    200 when the server can be used. `memory_overhead` is what one server takes without models; it is charged to the
    node while the server runs. `workers` is the number of servers (of adapters, for "process").
    `idle_seconds` after its last model was unloaded a server is stopped.
    """

    command: tuple[str, ...]
    formats: tuple[str, ...]
    adapter: Adapter
    protocol: Protocol = "oip"
    multi_model: bool | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    readiness: str | None = None
    startup_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0
    idle_seconds: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 300.0
    memory_overhead: Quantity = "256Mi"
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1

    @property
    def one_process_per_model(self) -> bool:
        return self.adapter == "process"


class ServingRuntime(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename="camel",
    tag_field="kind",
    tag="ServingRuntime",
):
    """A named way to run models by an external server."""

    metadata: Meta
    spec: ServingRuntimeSpec
    api_version: Literal["msm/v1"] = API_VERSION
    kind: ClassVar[str] = "ServingRuntime"
    status: ClassVar[None] = None  # what its servers do is the nodes' knowledge

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind, self.metadata.namespace, self.metadata.name)


def runtime_keys(namespace: str, name: str) -> tuple[ObjectKey, ...]:
    """Where a runtime that a model of `namespace` names is looked for, in order."""
    spaces = (namespace,) if namespace == DEFAULT_NAMESPACE else (namespace, DEFAULT_NAMESPACE)
    return tuple(ObjectKey(ServingRuntime.kind, space, name) for space in spaces)


def needs_trust(adapter: Adapter, name: str) -> bool:
    """Whether loading format `name` runs code that comes with the artifact.

    What a generic server or a command for one model does is the affair of who declared it.
    """
    safe = _DATA_ONLY.get(adapter)
    return safe is not None and name not in safe


def quantity_bytes(text: str) -> int:
    """Bytes of a quantity such as "512Mi". Raises ValueError for anything else."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a quantity of bytes")
    return int(match[1]) * _UNITS[match[2]]
