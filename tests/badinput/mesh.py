"""The two doors that bad input comes through: a whole mesh with its Envoy and API, and a worker's own socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench._mesh import Mesh
from tests.badinput.bodies import GOOD
from tests.badinput.cases import Door
from tests.badinput.wire import Address, Answer, Line, request

JSON = ("content-type", "application/json")
OWN = "bad-"  # models with such names belong to the test that declares and deletes them
GOOD_PATH = "/v2/models/perceptron/infer"


@dataclass(frozen=True)
class Doorway:
    """One door of the two: where it is, and how a valid request at it looks."""

    door: Door
    address: Address
    headers: tuple[tuple[str, str], ...] = ()

    def line(self) -> Line:
        """A new connection."""
        return Line(self.address)

    def good(self) -> bytes:
        """A valid request."""
        return request("POST", GOOD_PATH, [JSON, *self.headers], GOOD)

    def serves(self, line: Line | None = None) -> None:
        """A valid request is answered, on this connection or on a new one."""
        if line is not None:
            answer = line.ask(self.good())
        else:
            with self.line() as fresh:
                answer = fresh.ask(self.good())
        assert answer.status == 200, answer.text[:500]
        assert len(json.loads(answer.body)["outputs"][0]["data"]) == 3

    def ask(self, method: str, path: str, body: bytes | None = None, *headers: tuple[str, str]) -> Answer:
        """One request on a connection of its own."""
        with self.line() as line:
            return line.ask(request(method, path, [*headers, *self.headers], body), method=method)


@dataclass(frozen=True)
class Subject:
    """A mesh with the models of `tests.badinput.models`, seen from outside."""

    mesh: Mesh
    slow: Future[Answer]  # a request whose head comes one byte a second: begun with the mesh, since it takes long
    gateway: Doorway = field(init=False)
    _declared: list[tuple[str, str, int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gateway", Doorway("gateway", address_of(self.mesh.gateway)))
        object.__setattr__(self, "_declared", self._models())

    @property
    def probation(self) -> Doorway:
        """The socket of the process that tries versions: the node is its only caller, except here."""
        return Doorway("worker", self.mesh.data / "run" / "probe.sock")

    def api(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str | list[str]] | None = None,
        token: str | None = "good",
        through_gateway: bool = False,
    ) -> Answer:
        """One call of the node's API; `token` None sends none."""
        address = address_of(self.mesh.gateway if through_gateway else self.mesh.api)
        with Line(address) as line:
            return line.ask(self._call(method, path, body, headers or {}, token), method=method)

    @contextlib.contextmanager
    def streams(self, path: str, count: int) -> Iterator[list[Answer]]:
        """That many open streams of the API; yields the heads of their answers."""
        with contextlib.ExitStack() as stack:
            lines = [stack.enter_context(Line(address_of(self.mesh.api))) for _ in range(count)]
            sent = self._call("GET", path, None, {}, "good")
            yield [line.ask(sent, method="GET", head_only=True) for line in lines]

    def _call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str | list[str]], token: str | None
    ) -> bytes:
        lines = [
            (name, one) for name, value in headers.items() for one in (value if isinstance(value, list) else [value])
        ]
        if "host" not in headers:
            lines.append(("host", "localhost"))
        if token is not None:
            lines.append(("authorization", f"Bearer {self.mesh.token if token == 'good' else token}"))
        return request(method, _under_api(path), lines, body)

    def is_unchanged(self) -> None:
        """(f) What is declared is what was declared at the beginning, and (a) everybody is served."""
        assert self._models() == self._declared
        self.gateway.serves()

    def _models(self) -> list[tuple[str, str, int]]:
        answer = self.api("GET", "/models")
        assert answer.status == 200, answer.text[:500]
        return [
            (item["metadata"].get("namespace", "default"), item["metadata"]["name"], item["metadata"]["generation"])
            for item in json.loads(answer.body)["items"]
            if not item["metadata"]["name"].startswith(OWN)
        ]

    def pids(self) -> dict[str, int]:
        """The processes of the mesh by name."""
        node = self.mesh.node()
        return {**self.mesh.worker_pids(), "gateway": node["gateway"]["pid"], "node": self.mesh.process.pid}

    @staticmethod
    def problem(answer: Answer) -> dict[str, Any]:
        """The problem document (RFC 9457) of an API answer."""
        assert (answer.header("content-type") or "").startswith("application/problem+json"), answer.text[:500]
        document: dict[str, Any] = json.loads(answer.body)
        assert document["status"] == answer.status, document
        assert all(isinstance(document[member], str) and document[member] for member in ("type", "title", "detail"))
        return document


def _under_api(path: str) -> str:
    """Paths of the API are written without their common beginning; others begin with two slashes."""
    return path[1:] if path.startswith("//") else f"/api/v1{path}"


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


@dataclass(frozen=True)
class Worker:
    """A worker that holds the same models."""

    data: Doorway
    control: Doorway

    def load(self, name: str, parameters: dict[str, Any]) -> None:
        """Load version v1 of a model."""
        body = json.dumps({"parameters": parameters}).encode()
        answer = self.control.ask("POST", f"/v2/repository/models/default%2F{name}%2Fv1/load", body, JSON)
        assert answer.status == 200, answer.text[:500]

    def pid(self) -> int:
        """The number of its process, as it says itself."""
        pid: int = json.loads(self.control.ask("GET", "/v2/health/live").body)["pid"]
        return pid


def worker_doors(data: Path, control: Path) -> Worker:
    """The doors of a worker at these sockets."""
    return Worker(Doorway("worker", data, (("x-msm-target", "default/perceptron/v1"),)), Doorway("worker", control))
