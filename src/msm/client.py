"""The typed client of a node's API, for the command line and for programs.

Answers are the types of `msm.resources`; problem documents come back as the errors they were made of. It finds a node
through its data directory and speaks to nothing but that node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from msm import __version__
from msm.kit import errors
from msm.observe.events import Event
from msm.resources.manifest import plain
from msm.resources.meta import ObjectKey, is_name
from msm.resources.observed import Explanation, NodeStatus
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import Model, Resource
from msm.resources.text import shown
from msm.resources.wire import (
    NODE_FILE,
    TOKEN_FILE,
    ApplyReport,
    ChangeReport,
    HistoryEntry,
    HistoryList,
    ModelList,
    NodeFile,
    ProblemDocument,
    ProgressReport,
    RollbackRequest,
    RuntimeList,
    WatchItem,
)

T = TypeVar("T")
TIMEOUT_S = 60.0
_BY_STATUS: dict[int, type[errors.MsmError]] = {
    400: errors.InvalidInput,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    405: errors.Unsupported,
    409: errors.Conflict,
    413: errors.InputTooLarge,
    415: errors.Unsupported,
    421: errors.InvalidInput,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a node: the addresses of its API and its gateway, and the token. `place` is for messages."""

    api: str
    gateway: str
    token: str = field(repr=False)
    place: str = ""

    @classmethod
    def discover(cls, data_dir: Path) -> Connection:
        """The node of a data directory. Raises Unavailable when none was started there, Forbidden when its token
        cannot be read."""
        try:
            node = msgspec.json.decode((data_dir / NODE_FILE).read_bytes(), type=NodeFile)
            token = (data_dir / TOKEN_FILE).read_text("ascii").strip()
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError) as error:
            raise not_running(str(data_dir)) from error
        except PermissionError as error:
            raise errors.Forbidden(f"the data directory {data_dir} belongs to another user") from error
        return cls(node.api, node.gateway, token, str(data_dir))


def not_running(place: str) -> errors.Unavailable:
    """The error that says there is no node."""
    return errors.Unavailable(f"no mesh runs on data directory {place}; start one with: msm up", reason="not_running")


@dataclass(frozen=True, slots=True)
class InferReply:
    """The gateway's answer to an inference request, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class MeshClient:
    """Calls one node. A context manager; not for use by several threads at once.

    Every method raises Unavailable when the node does not answer, DeadlineExceeded when it answers too late,
    Unauthenticated for a wrong token, and what the API raises.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = connection
        headers = {"authorization": f"Bearer {connection.token}", "user-agent": f"msm/{__version__}"}
        timeout = httpx.Timeout(timeout_s, connect=5.0)
        self._http = httpx.Client(
            base_url=connection.api, headers=headers, timeout=timeout, transport=transport, trust_env=False
        )

    @classmethod
    def of(cls, data_dir: Path, *, timeout_s: float = TIMEOUT_S) -> MeshClient:
        """A client of the node of a data directory."""
        return cls(Connection.discover(data_dir), timeout_s=timeout_s)

    @property
    def connection(self) -> Connection:
        return self._connection

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Declared models

    def apply(self, resources: Sequence[Resource], *, dry_run: bool = False) -> ApplyReport:
        """Declare resources in one transaction; with `dry_run` say what it would do."""
        return self.apply_text(msgspec.json.encode([plain(resource) for resource in resources]), dry_run=dry_run)

    def apply_text(self, manifest: bytes, *, dry_run: bool = False) -> ApplyReport:
        """Declare the resources of a manifest, YAML or JSON."""
        return self._call(
            ApplyReport,
            "POST",
            "/api/v1/apply",
            params={"dryRun": "true" if dry_run else "false"},
            content=manifest,
            headers={"content-type": "application/yaml"},
        )

    def models(self, namespace: str | None = None) -> ModelList:
        """All models, or those of a namespace."""
        return self._call(ModelList, "GET", "/api/v1/models", params=_given(namespace=namespace))

    def model(self, key: ObjectKey) -> Model:
        """One model with its status."""
        return self._call(Model, "GET", _path(key))

    def delete(self, key: ObjectKey, *, resource_version: int | None = None) -> ChangeReport:
        """Remove an object; its history stays."""
        return self._call(ChangeReport, "DELETE", _path(key), params=_given(resourceVersion=resource_version))

    def progress(self, key: ObjectKey) -> ProgressReport:
        """How far the versions of a model have come."""
        return self._call(ProgressReport, "GET", f"{_path(key)}/progress")

    def history(self, key: ObjectKey) -> tuple[HistoryEntry, ...]:
        """The accepted changes, oldest first."""
        return self._call(HistoryList, "GET", f"{_path(key)}/history").items

    def at_generation(self, key: ObjectKey, generation: int) -> Model:
        """The model as that generation declared it."""
        return self._call(Model, "GET", f"{_path(key)}/history/{generation}")

    def runtimes(self, namespace: str | None = None) -> RuntimeList:
        """All runtimes, or those of a namespace."""
        return self._call(RuntimeList, "GET", "/api/v1/runtimes", params=_given(namespace=namespace))

    def runtime(self, key: ObjectKey) -> ServingRuntime:
        """One runtime."""
        return self._call(ServingRuntime, "GET", _path(key))

    def rollback(self, key: ObjectKey, *, to: int | None = None) -> ChangeReport:
        """Make the spec of an earlier generation the newest; None: the last one that differs."""
        return self._call(ChangeReport, "POST", f"{_path(key)}/rollback", **_json(RollbackRequest(to=to)))

    # The node

    def node(self) -> NodeStatus:
        """The state of the node."""
        return self._call(NodeStatus, "GET", "/api/v1/node")

    def explain(self, key: ObjectKey) -> Explanation:
        """Why a model is as it is."""
        return self._call(Explanation, "GET", _path(key).replace("/models/", "/explain/", 1))

    def events(self, subject: str = "", *, since: float | None = None, limit: int = 200) -> tuple[Event, ...]:
        """The newest events, oldest of them first; with `subject` those of that object and what belongs to it."""
        params = {"subject": subject, "limit": str(limit), **_given(since=since)}
        return self._call(tuple[Event, ...], "GET", "/api/v1/events", params=params)

    def follow_events(self, subject: str = "", *, since: float | None = None, limit: int = 0) -> Iterator[Event]:
        """The newest `limit` events and then those that come, until the node ends or the iterator is closed."""
        params = {"subject": subject, "follow": "true", "limit": str(limit), **_given(since=since)}
        yield from self._stream(Event, "/api/v1/events", params)

    def watch(self, from_revision: int | None = None) -> Iterator[WatchItem]:
        """Changes of models as they come."""
        yield from self._stream(WatchItem, "/api/v1/watch", _given(**{"from": from_revision}))

    def logs(self, worker: str, *, lines: int = 200, model: str = "") -> str:
        """The last lines of a worker's log; with `model` only those that name it."""
        return self._send("GET", _log_path(worker), params={"lines": str(lines), "model": model}).text

    def follow_logs(self, worker: str, *, lines: int = 10, model: str = "") -> Iterator[str]:
        """Lines of a worker's log as they come, after the last `lines`."""
        params = {"lines": str(lines), "model": model, "follow": "true"}
        with self._streaming(_log_path(worker), params) as response:
            yield from response.iter_lines()

    # Inference

    def activate(self, service: str, version: str | None = None) -> None:
        """Load a version (None: those that take traffic) and wait until it is ready."""
        self._send("POST", f"/v2/repository{_service_path(service, version)}/load")

    def deactivate(self, service: str, version: str | None = None) -> None:
        """Unload the copies of a version (None: of all)."""
        self._send("POST", f"/v2/repository{_service_path(service, version)}/unload")

    def infer(
        self, service: str, body: bytes, *, version: str | None = None, headers: Mapping[str, str] | None = None
    ) -> InferReply:
        """Send an inference request through the gateway, as any client would; a failed one is an answer too."""
        url = f"{self._connection.gateway}/v2{_service_path(service, version)}/infer"
        request = httpx.Request(
            "POST", url, content=body, headers={"content-type": "application/json", **(headers or {})}
        )
        request.extensions["timeout"] = self._http.timeout.as_dict()
        with self._mapped():
            response = self._http.send(request)
        return InferReply(response.status_code, response.headers, response.content)

    # How calls are made

    def _call(self, answer: type[T], method: str, path: str, **options: Any) -> T:
        response = self._send(method, path, **options)
        return _decoded(response.content, answer)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._mapped():
            response = self._http.request(method, path, **options)
        if not response.is_success:
            raise error_of(response)
        return response

    def _stream(self, item: type[T], path: str, params: Mapping[str, str]) -> Iterator[T]:
        name = ""
        with self._streaming(path, params) as response:
            for line in response.iter_lines():
                kind, _, rest = line.partition(": ")
                if kind == "event":
                    name = rest
                elif kind == "data" and name == "error":
                    problem = _decoded(rest.encode(), dict[str, str])
                    raise errors.Unavailable(problem["detail"], reason=problem["reason"])
                elif kind == "data":
                    yield _decoded(rest.encode(), item)

    @contextmanager
    def _streaming(self, path: str, params: Mapping[str, str]) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(5.0, read=60.0)  # the server sends something every 15 seconds
        with self._mapped(), self._http.stream("GET", path, params=params, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise error_of(response)
            yield response

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise not_running(self._connection.place) from error
        except httpx.TimeoutException as error:
            raise errors.DeadlineExceeded("the mesh did not answer in time") from error
        except httpx.TransportError as error:
            raise errors.Unavailable("the connection to the mesh broke") from error


def error_of(response: httpx.Response) -> errors.MsmError:
    """The error that a failed response stands for."""
    status = response.status_code
    try:
        document = msgspec.json.decode(response.content, type=ProblemDocument)
    except msgspec.DecodeError:
        return _BY_STATUS.get(status, errors.Internal)(f"the mesh answered with status {status}")
    detail, reason = document.detail, document.reason
    problems = [(fault.path, fault.reason) for fault in document.errors]
    match status:
        case 404:
            return errors.NotFound(detail, reason=reason, nearest=document.nearest)
        case 400 | 421:
            return errors.InvalidInput(detail, reason=reason, problems=problems)
        case 413:
            return errors.InputTooLarge(detail, reason=reason, problems=problems)
        case 429:
            return errors.Overloaded(detail, reason=reason, retry_after_s=_retry_after(response))
        case 503:
            return errors.Unavailable(detail, reason=reason, retry_after_s=_retry_after(response))
        case _:
            return _BY_STATUS.get(status, errors.Internal)(detail, reason=reason)


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "1")
    return float(text) if text.isascii() and text.isdigit() else 1.0


def _decoded(content: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=answer)
    except msgspec.DecodeError as error:
        raise errors.Unavailable(
            f"the answer of the mesh is not understood; is it of version {__version__}, like this client?",
            reason="version_skew",
        ) from error


def _path(key: ObjectKey) -> str:
    for part in (key.namespace, key.name):
        if not is_name(part):  # ".." in an address would be another address
            raise errors.NotFound(f"there is no {key.kind.lower()} {shown(part)}: that is not a name")
    below = "runtimes" if key.kind == ServingRuntime.kind else "models"
    return f"/api/v1/{below}/{quote(key.namespace, '')}/{quote(key.name, '')}"


def _log_path(worker: str) -> str:
    return f"/api/v1/logs/{quote(worker, '')}"


def _service_path(service: str, version: str | None) -> str:
    path = f"/models/{quote(service)}"
    return path if version is None else f"{path}/versions/{quote(version, '')}"


def _given(**params: str | float | None) -> dict[str, str]:
    return {name: str(value) for name, value in params.items() if value is not None}


def _json(value: Any) -> dict[str, Any]:
    return {"content": msgspec.json.encode(value), "headers": {"content-type": "application/json"}}
