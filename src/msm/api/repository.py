"""The model repository extension of the Open Inference Protocol, which clients reach through the gateway.

The index is open to every client that may infer; loading and unloading need the administrator's token. A model's name
is the name of its service; a load is an activation, the same that a first request causes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from msm.api.bodies import answer, read_json
from msm.api.deps import deps_of
from msm.resources.observed import CopyState, CopyStatus
from msm.resources.serving import Model, VersionKey, VersionStatus, service_name
from msm.resources.wire import CopyPhase, IndexEntry, IndexRequest, LoadRequest

INDEX = "/v2/repository/index"
_PHASES: dict[CopyState, CopyPhase] = {
    "Ready": "READY",
    "Loading": "LOADING",
    "Queued": "LOADING",
    "Draining": "UNLOADING",
    "Unloading": "UNLOADING",
}
_BEST: tuple[CopyPhase, ...] = ("READY", "LOADING", "UNLOADING")


def repository_index(models: Iterable[Model], copies: Iterable[CopyStatus]) -> Iterator[IndexEntry]:
    """Every version of every model with the best state of its copies; without copies UNAVAILABLE and why."""
    phases: dict[str, set[CopyPhase]] = {}
    for copy in copies:
        phases.setdefault(copy.version, set()).add(_PHASES[copy.state])
    for model in models:
        known = model.status.versions if model.status else {}
        for version in model.spec.versions:
            key = VersionKey(model.metadata.namespace, model.metadata.name, version.name)
            mine = phases.get(str(key), set())
            phase: CopyPhase = next((best for best in _BEST if best in mine), "UNAVAILABLE")
            reason = _why_unavailable(known.get(version.name)) if phase == "UNAVAILABLE" else ""
            yield IndexEntry(name=service_name(model.key), version=version.name, state=phase, reason=reason)


def _why_unavailable(status: VersionStatus | None) -> str:
    match status:
        case None:
            return "pending"
        case VersionStatus(phase="Valid"):
            return "unloaded"
        case VersionStatus(phase="Failed", reason=reason):
            return reason or "failed"
        case VersionStatus(phase=phase):
            return phase.lower()


async def index(request: Request) -> Response:
    deps = deps_of(request)
    wanted = await read_json(request, IndexRequest, default=IndexRequest())
    _, models = await deps.catalog.list("Model", None)
    entries = repository_index(models, deps.node.snapshot().copies)
    return answer([entry for entry in entries if entry.state == "READY" or not wanted.ready])


async def load(request: Request) -> Response:
    await read_json(request, LoadRequest, default=LoadRequest())
    await deps_of(request).node.activate(request.path_params["name"], request.path_params.get("version"))
    return answer({})


async def unload(request: Request) -> Response:
    await read_json(request, LoadRequest, default=LoadRequest())
    await deps_of(request).node.deactivate(request.path_params["name"], request.path_params.get("version"))
    return answer({})


_VERSION = "/v2/repository/models/{name:path}/versions/{version}"
_MODEL = "/v2/repository/models/{name:path}"
ROUTES = [
    Route(INDEX, index, methods=["POST"]),
    Route(f"{_VERSION}/load", load, methods=["POST"]),
    Route(f"{_VERSION}/unload", unload, methods=["POST"]),
    Route(f"{_MODEL}/load", load, methods=["POST"]),
    Route(f"{_MODEL}/unload", unload, methods=["POST"]),
]
