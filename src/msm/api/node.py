"""The node itself: state, explanations, logs of workers, health and metrics."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from msm import __version__
from msm.api import logs
from msm.api.bodies import answer, flag, number
from msm.api.deps import deps_of
from msm.api.metrics import render
from msm.api.models import key_of
from msm.kit.clock import Clock
from msm.kit.errors import NotFound
from msm.kit.nearest import hint, nearest
from msm.resources.text import shown

FOLLOW_POLL_S = 0.25


async def health(_request: Request) -> Response:
    """Answers while the event loop turns; says nothing that a stranger may not know."""
    return answer({"status": "ok", "version": __version__})


async def node(request: Request) -> Response:
    return answer(deps_of(request).node.snapshot())


async def explain(request: Request) -> Response:
    deps, key = deps_of(request), key_of(request)
    await deps.catalog.get(key)  # raises NotFound with the nearest names
    return answer(deps.node.explain(key))


async def worker_log(request: Request) -> Response:
    """The last lines of a worker's log (`lines`), those that hold `model` when it is given; `follow` goes on."""
    deps, worker = deps_of(request), request.path_params["worker"]
    known = [status.id for status in deps.node.snapshot().workers]
    if worker not in known:
        like = nearest(worker, known)
        raise NotFound(f"there is no worker {shown(worker)}{hint(like)}", nearest=like)
    path = deps.node.log_path(worker)
    wanted = request.query_params.get("model", "").encode()
    lines = number(request, "lines", least=0, most=10_000, default=200)
    tail = await logs.read_tail(path, lines if lines is not None else 200, wanted)
    if flag(request, "follow"):
        return deps.streams.text(_follow(tail, wanted, deps.clock))
    return Response(tail.text, 200, {"cache-control": "no-store"}, "text/plain; charset=utf-8")


async def _follow(tail: logs.Tail, wanted: bytes, clock: Clock) -> AsyncGenerator[bytes, None]:
    if tail.text:
        yield tail.text
    while True:
        tail = await logs.read_more(tail, wanted)
        if tail.text:
            yield tail.text
        await clock.sleep(FOLLOW_POLL_S)


async def metrics(request: Request) -> Response:
    deps = deps_of(request)
    text = render(deps.node.snapshot(), dropped_events=deps.events.dropped)
    return Response(text, 200, {"cache-control": "no-store"}, "text/plain; version=0.0.4; charset=utf-8")


ROUTES = [
    Route("/node", node, methods=["GET"]),
    Route("/explain/{namespace}/{name}", explain, methods=["GET"]),
    Route("/logs/{worker}", worker_log, methods=["GET"]),
]
