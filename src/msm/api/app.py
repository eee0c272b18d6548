"""Puts the parts together: one application for people and programs on TCP, a small one behind the gateway."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.datastructures import State
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import Receive, Scope, Send

from msm.api import events, models, node, openai, page, repository
from msm.api.deps import ApiDeps
from msm.api.guard import Guard

_OPEN = frozenset({*page.PATHS, "/healthz"})


class Application:
    """An ASGI application: the guard around a router, and the dependencies that handlers find at `request.app`.

    Not Starlette's own class, because that answers errors by itself, in another form.
    """

    def __init__(
        self,
        deps: ApiDeps,
        routes: Sequence[BaseRoute],
        hosts: frozenset[str] | None,
        is_open: Callable[[str, str], bool],
    ) -> None:
        self.state = State({"deps": deps})
        router = Router(routes, redirect_slashes=False)
        self._guard = Guard(router, tokens=deps.tokens, hosts=hosts, is_open=is_open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._guard(scope, receive, send)

    def close_streams(self) -> None:
        """End the answers that would not end by themselves; called when the server stops."""
        deps: ApiDeps = self.state.deps
        deps.streams.close()


def create_app(deps: ApiDeps) -> Application:
    """The API of a node: all under /api/v1, the repository extension, health, metrics and the status page."""
    routes: list[BaseRoute] = [
        Mount("/api/v1", app=Router([*models.ROUTES, *node.ROUTES, *events.ROUTES], redirect_slashes=False)),
        *repository.ROUTES,
        Route("/healthz", node.health, methods=["GET"]),
        Route("/metrics", node.metrics, methods=["GET"]),
        *page.ROUTES,
    ]
    return Application(deps, routes, deps.hosts, _needs_no_token)


def create_gateway_app(deps: ApiDeps) -> Application:
    """What clients reach through the gateway: the repository extension and the list of models, nothing else. Envoy is
    its only caller, so the Host is the gateway's affair."""
    return Application(deps, [*repository.ROUTES, *openai.ROUTES], None, _open_to_clients)


def _needs_no_token(method: str, path: str) -> bool:
    if method == "POST":
        return path == repository.INDEX
    return method in ("GET", "HEAD") and path in _OPEN


def _open_to_clients(method: str, path: str) -> bool:
    return _needs_no_token(method, path) or (method == "GET" and path.startswith(openai.PREFIX))
