"""What every request passes before a handler sees it: the Host, the token, and the form of errors.

Plain ASGI, outermost first: `Guard` answers every exception; inside it the Host is checked, then the token. A request
without a valid token learns nothing, not even whether a path exists.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msm.api.auth import TokenFile
from msm.api.problems import Form, MethodNotAllowed, Misdirected, problem
from msm.kit.errors import Internal, InvalidInput, MsmError, NotFound, Unauthenticated
from msm.observe.logs import get_logger
from msm.resources.text import shown

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
log = get_logger("api")


class Guard:
    """The outside of an application. `hosts` None means that the Host is not checked (a unix socket); `is_open`
    tells the requests (method, path) that need no token."""

    def __init__(
        self, app: ASGIApp, *, tokens: TokenFile, hosts: frozenset[str] | None, is_open: Callable[[str, str], bool]
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = None if hosts is None else LOOPBACK | hosts
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, watched)
        except Exception as failure:
            error = _known(failure, scope)
            if begun:
                return  # the answer is cut off: its length or its last chunk is missing, so the client sees it
            await problem(error, form=_form_of(scope["path"]))(scope, receive, watched)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts is not None:
            hosts = headers.getlist("host")
            if len(hosts) != 1:
                raise InvalidInput(f"{len(hosts)} Host headers were sent; one is needed")
            if _without_port(hosts[0]) not in self._hosts:
                raise Misdirected(f"this server does not answer for the host {shown(hosts[0])}")
        if not self._is_open(scope["method"], scope["path"]):
            self._tokens.check(_bearer(headers))


def _form_of(path: str) -> Form:
    """In which form callers of a path read errors."""
    return "protocol" if path.startswith("/v2/") else "openai" if path.startswith("/v1/") else "problem"


def _without_port(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.partition(":")[0]


def _bearer(headers: Headers) -> str | None:
    given = headers.getlist("authorization")
    if len(given) > 1:
        raise Unauthenticated("several Authorization headers were sent; one is needed")
    scheme, _, token = (given[0] if given else "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _known(failure: Exception, scope: Scope) -> MsmError:
    """`failure` as one of our errors; what is not is logged, since the answer says nothing of it."""
    match failure:
        case MsmError():
            if isinstance(failure, Internal):
                log.error("a request failed", path=scope["path"], exc_info=failure)
            return failure
        case HTTPException(status_code=405):
            return MethodNotAllowed(scope["method"], (failure.headers or {}).get("Allow", ""))
        case HTTPException(status_code=404):
            return NotFound(f"there is nothing at {shown(scope['path'])}", reason="no_such_path")
        case HTTPException():
            return InvalidInput(failure.detail)
        case _:
            log.error("a request failed", path=scope["path"], exc_info=failure)
            return Internal("the request failed inside the server; its log says why")
