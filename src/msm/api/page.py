"""The status page: three static files. They hold no data; what they show they fetch with the token a person gives."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}
PATHS = {"/": "index.html", "/static/app.js": "app.js", "/static/style.css": "style.css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def page(request: Request) -> Response:
    name = PATHS[request.url.path]
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return Response(_content(name), 200, headers, _TYPES[name])


@cache
def _content(name: str) -> bytes:
    return files("msm.api").joinpath("static", name).read_bytes()


ROUTES = [Route(path, page, methods=["GET"]) for path in PATHS]
