"""What happened and what happens: events and changes of models, as lists and as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from msm.api.bodies import answer, flag, number
from msm.api.deps import ApiDeps, deps_of
from msm.api.streams import closing
from msm.kit.errors import InvalidInput
from msm.resources.serving import Model
from msm.resources.text import shown
from msm.resources.wire import WatchItem
from msm.store import CatalogChange

MOST_EVENTS = 10_000
MOST_REVISION = 2**63 - 1


async def events(request: Request) -> Response:
    """The newest events (`limit`, 200), oldest of them first. With `follow` the newest (`limit`, none) and then all
    that come, for as long as the client stays: nothing is missed and nothing told twice.

    `subject` "model/iris" means that object and what belongs to it.
    """
    deps = deps_of(request)
    subject = request.query_params.get("subject") or None
    following = flag(request, "follow")
    default = 0 if following else 200
    limit = number(request, "limit", least=0 if following else 1, most=MOST_EVENTS, default=default)
    since = _since(request)
    if following:
        return deps.streams.events(_follow(deps, subject, since, limit or 0))
    return answer(await deps.events.list(subject, since, limit or default))


async def _follow(
    deps: ApiDeps, subject: str | None, since: float | None, limit: int
) -> AsyncGenerator[tuple[str, Any], None]:
    # Followed before the past is read: an event in between is in both, and left out the second time.
    async with closing(deps.events.follow(subject)) as coming:
        past = await deps.events.list(subject, since, limit) if limit else ()
        for event in past:
            yield "event", event
        told = {id(event) for event in past}
        async for event in coming:
            if id(event) not in told:
                yield "event", event


async def watch(request: Request) -> Response:
    """Changes of models from the revision `from` on (missing: from now on)."""
    deps = deps_of(request)
    first = number(request, "from", least=0, most=MOST_REVISION)
    if first is None:
        revision, _ = await deps.catalog.list("Model", None)
        first = revision + 1
    return deps.streams.events(_changes(deps, first))


async def _changes(deps: ApiDeps, first: int) -> AsyncGenerator[tuple[str, Any], None]:
    async with closing(deps.catalog.watch(first)) as batches:
        async for batch in batches:
            for change in batch:
                if change.key.kind == Model.kind:
                    yield "change", _item(change)


def _item(change: CatalogChange) -> WatchItem:
    key = change.key
    return WatchItem(
        revision=change.revision,
        kind=key.kind,
        namespace=key.namespace,
        name=key.name,
        model=change.resource if isinstance(change.resource, Model) else None,
    )


def _since(request: Request) -> float | None:
    value = request.query_params.get("since")
    if value is None:
        return None
    try:
        since = float(value)
    except ValueError:
        since = -1.0
    if not 0 <= since < 1e12:
        raise InvalidInput(f"the parameter since is {shown(value)}; it is a time in seconds since the epoch")
    return since


ROUTES = [
    Route("/events", events, methods=["GET"]),
    Route("/watch", watch, methods=["GET"]),
]
