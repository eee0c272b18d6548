"""Declared objects: apply, read, delete, history, roll back. The rules are the catalog's; here they are only spoken."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from msm.api.bodies import MANIFESTS, answer, flag, number, read_body, read_json
from msm.api.deps import ADMIN, deps_of
from msm.kit.errors import NotFound
from msm.resources.manifest import load
from msm.resources.meta import ObjectKey, is_name
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import Model, VersionKey, VersionStatus
from msm.resources.text import shown
from msm.resources.wire import (
    ApplyReport,
    ChangeReport,
    HistoryEntry,
    HistoryList,
    ModelList,
    ProgressReport,
    RollbackRequest,
    RuntimeList,
    VersionProgress,
)
from msm.store import Change

MOST_REVISION = 2**63 - 1
_ONE = "/{namespace}/{name}"
_KINDS = {"models": (Model.kind, "model"), "runtimes": (ServingRuntime.kind, "runtime")}


async def apply(request: Request) -> Response:
    """Declare all resources of the body in one transaction, or say what doing so would change and move."""
    deps = deps_of(request)
    body = await read_body(request, MANIFESTS)
    dry_run = flag(request, "dryRun")
    located = await asyncio.to_thread(load, body)  # a megabyte of YAML takes a while
    changes = await deps.catalog.apply([item.resource for item in located], who=ADMIN, dry_run=dry_run)
    wanted = [change.after for change in changes if isinstance(change.after, Model)]
    return answer(
        ApplyReport(
            changes=tuple(_report(change) for change in changes),
            plan=deps.node.preview(wanted) if dry_run else (),
            dry_run=dry_run,
        )
    )


async def list_models(request: Request) -> Response:
    revision, models = await deps_of(request).catalog.list("Model", request.query_params.get("namespace"))
    return answer(ModelList(revision=revision, items=models))


async def list_runtimes(request: Request) -> Response:
    revision, runtimes = await deps_of(request).catalog.list("ServingRuntime", request.query_params.get("namespace"))
    return answer(RuntimeList(revision=revision, items=runtimes))


async def one_object(request: Request) -> Response:
    """Read or delete: one route for both, so that other methods are told of both."""
    deps, key = deps_of(request), key_of(request)
    if request.method != "DELETE":
        return answer(await deps.catalog.get(key))
    seen = number(request, "resourceVersion", least=0, most=MOST_REVISION)
    return answer(_report(await deps.catalog.delete(key, who=ADMIN, resource_version=seen)))


async def progress(request: Request) -> Response:
    """How far the versions have come, with the bytes that running fetches have brought."""
    deps = deps_of(request)
    model = await deps.catalog.model(key_of(request))
    known = model.status.versions if model.status else {}
    versions = {}
    for version in model.spec.versions:
        found = known.get(version.name, VersionStatus(phase="Pending"))
        key = VersionKey(model.metadata.namespace, model.metadata.name, version.name)
        versions[version.name] = VersionProgress(
            phase=found.phase, fetched_bytes=deps.node.fetched_bytes(key), message=found.message
        )
    observed = model.status.observed_generation if model.status else 0
    return answer(ProgressReport(observed=observed, generation=model.metadata.generation or 0, versions=versions))


async def history(request: Request) -> Response:
    entries = await deps_of(request).catalog.history(key_of(request))
    return answer(
        HistoryList(
            items=tuple(
                HistoryEntry(
                    generation=entry.generation,
                    action=entry.action,
                    who=entry.who,
                    at=entry.at,
                    restored=entry.restored,
                )
                for entry in entries
            )
        )
    )


async def at_generation(request: Request) -> Response:
    key = key_of(request)
    text = request.path_params["generation"]
    if not (text.isascii() and text.isdigit() and len(text) < 13):
        raise NotFound(f"{key} has no generation {shown(text)}: generations are whole numbers from 1")
    return answer(await deps_of(request).catalog.at_generation(key, int(text)))


async def rollback(request: Request) -> Response:
    deps, key = deps_of(request), key_of(request)
    wanted = await read_json(request, RollbackRequest, default=RollbackRequest())
    return answer(_report(await deps.catalog.rollback(key, to=wanted.to, who=ADMIN)))


def key_of(request: Request) -> ObjectKey:
    """The object that the path names. Raises NotFound when nothing can have that name."""
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    below = request.scope["path"].removeprefix(request.scope.get("root_path", "")).split("/", 2)[1]
    kind, what = _KINDS.get(below, _KINDS["models"])  # "explain" is about models
    for part in (namespace, name):
        if not is_name(part):
            raise NotFound(f"there is no {what} {shown(f'{namespace}/{name}')}: {shown(part)} is not a name")
    return ObjectKey(kind, namespace, name)


def _report(change: Change) -> ChangeReport:
    return ChangeReport(
        kind=change.key.kind,
        namespace=change.key.namespace,
        name=change.key.name,
        action=change.action,
        generation=change.generation,
        before=change.before,
        after=change.after,
    )


def _routes(below: str) -> list[Route]:
    """What every kind of object offers."""
    one = f"{below}{_ONE}"
    return [
        Route(one, one_object, methods=["GET", "DELETE"]),
        Route(f"{one}/history", history, methods=["GET"]),
        Route(f"{one}/history/{{generation}}", at_generation, methods=["GET"]),
        Route(f"{one}/rollback", rollback, methods=["POST"]),
    ]


ROUTES = [
    Route("/apply", apply, methods=["POST"]),
    Route("/models", list_models, methods=["GET"]),
    Route(f"/models{_ONE}/progress", progress, methods=["GET"]),
    *_routes("/models"),
    Route("/runtimes", list_runtimes, methods=["GET"]),
    *_routes("/runtimes"),
]
