"""External servers as this node runs them: what an adapter is told, and what a version costs before it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from msm.kit.errors import LoadFailed
from msm.node.ports import Desired
from msm.node.process import python_argv
from msm.resources.meta import ObjectKey, to_plain
from msm.resources.runtimes import ServingRuntime, needs_trust, quantity_bytes
from msm.resources.serving import VersionKey, VersionSpec

GUESS_BYTES = 64 << 20
START_MARGIN_S = 15.0
NO_RUNTIME = "no_runtime"
_TOLD = ("command", "adapter", "protocol", "env", "readiness", "startupSeconds")


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The servers of one runtime. `text` is what an adapter is told, so that a change of it means other servers."""

    runtime: str
    text: bytes
    workers: int
    startup_s: float
    idle_s: float
    overhead_bytes: int


def server_plan(runtime: ServingRuntime) -> ServerPlan:
    """How this node runs a runtime."""
    spec = runtime.spec
    plain = to_plain(spec)
    told = {name: plain[name] for name in _TOLD if name in plain}
    name = runtime_name(runtime.key)
    return ServerPlan(
        runtime=name,
        text=msgspec.json.encode({"name": name, **told}),
        workers=spec.workers,
        startup_s=spec.startup_seconds + START_MARGIN_S,
        idle_s=spec.idle_seconds,
        # An adapter of servers for one model each has none before its first model.
        overhead_bytes=0 if spec.one_process_per_model else quantity_bytes(spec.memory_overhead),
    )


def runtime_name(key: ObjectKey) -> str:
    """A runtime's name in pictures and records: "namespace/name"."""
    return f"{key.namespace}/{key.name}"


def runtime_key(name: str) -> ObjectKey:
    """Inverse of `runtime_name`."""
    namespace, _, rest = name.partition("/")
    return ObjectKey(ServingRuntime.kind, namespace, rest)


def runtime_of(desired: Desired, key: VersionKey, spec: VersionSpec) -> ServingRuntime | None:
    """The runtime of a version; None when the built-in worker runs it. Raises LoadFailed when it is not declared."""
    if spec.runtime is None:
        return None
    found = desired.runtime(key.namespace, spec.runtime)
    if found is None:
        raise LoadFailed(f"there is no ServingRuntime {spec.runtime!r}", reason=NO_RUNTIME)
    return found


def check_format(runtime: ServingRuntime, spec: VersionSpec) -> str:
    """The format of a version in a runtime. Raises LoadFailed when the runtime cannot serve it."""
    formats = runtime.spec.formats
    name = spec.format or (formats[0] if len(formats) == 1 else None)
    if name is None:
        raise LoadFailed(
            f"the format is not given; runtime {runtime.metadata.name} serves {', '.join(formats)}",
            reason="unknown_format",
        )
    if name not in formats:
        raise LoadFailed(
            f"runtime {runtime.metadata.name} does not serve format {name}, only {', '.join(formats)}",
            reason="unknown_format",
        )
    if needs_trust(runtime.spec.adapter, name) and not spec.trusted:
        raise LoadFailed(
            f"format {name} on {runtime.spec.adapter} runs code of the artifact: it needs trusted: true",
            reason="untrusted",
        )
    return name


def first_estimate(runtime: ServingRuntime, spec: VersionSpec, size_bytes: int) -> int:
    """What a copy is taken to cost until it is measured: as declared, else the artifact and some."""
    if spec.memory is not None:
        return quantity_bytes(spec.memory)
    process = quantity_bytes(runtime.spec.memory_overhead) if runtime.spec.one_process_per_model else 0
    return size_bytes + process + GUESS_BYTES


def cost_format(runtime: str, name: str) -> str:
    """The name of a format in the record of a cost: the same bytes cost differently in another server."""
    return f"{name}@{runtime.replace('/', '.')}"


def adapter_argv(worker: str, places: list[str], folder: Path) -> list[str]:
    """The command of an adapter; `folder` is its own and holds the file that describes its server."""
    return python_argv(
        "msm.adapter", "--id", worker, *places, "--server", str(folder / "server.json"), "--work", str(folder)
    )


def write_server_file(folder: Path, text: bytes) -> None:
    """Leave what the adapter is to be told."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "server.json").write_bytes(text)


def told_to(folder: Path) -> bytes | None:
    """What the adapter in this place was told; None when that is gone."""
    try:
        return (folder / "server.json").read_bytes()
    except OSError:
        return None


def fault_of(folder: Path) -> str:
    """Why the server in this place could not be started; empty when it could."""
    try:
        return (folder / "fault").read_text("utf-8", "replace")[:500]
    except OSError:
        return ""
