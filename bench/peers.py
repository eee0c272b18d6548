"""Side by side with other model servers on one core: processor time per request, waiting, memory and loading.

`make bench-peers` installs them and runs this. All servers are there all the time; in every round each is asked once.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench import _peers
from bench._cases import FORMATS, INFER_GRPC, Case, cases, write_models
from bench._gateway import run_folder
from bench._h2load import Run, load
from bench._mesh import mesh
from bench._peers import Server
from bench._processor import SERVER_CORE, on_cores, pss_bytes
from bench._worker import UnixConnection, Worker, worker
from bench.figures import Figure
from bench.mesh_cost import deploy
from bench.residency import classifiers, networks
from msm.runtime.protocols import oip_grpc
from msm.runtime.protocols import oip_pb2 as pb

WORKER, MESH, TRITON, MLSERVER = "our worker alone", "our mesh", "Triton", "MLServer"
REST, GRPC, IRIS = "tiny ONNX network, REST JSON", "tiny ONNX network, gRPC", "logistic regression, REST JSON"
IMAGE, BINARY = "1x3x224x224 identity, REST JSON", "1x3x224x224 identity, REST binary"
OF_ONE = ", 1 caller"
Runs = dict[str, dict[str, list[Run]]]  # by workload, by server


@dataclass(frozen=True, slots=True)
class Contender:
    """A server under load, ours or another's. `more`: load a further model of a file, and the seconds that took."""

    name: str
    rest: str
    grpc: str | None
    pids: Callable[[], list[int]]
    lacks: tuple[str, ...] = ()
    more: Callable[[str, Path], float] | None = None
    count: int = 0

    def takes(self, case: Case) -> bool:
        return not any(what in case.name for what in self.lacks)

    def run(self, case: Case, callers: int, seconds: float) -> Run:
        here = case.on_worker() if self.rest.startswith("unix:") else case
        address = self.grpc if case.ask.http2 else self.rest
        assert address is not None
        return load(address, here.ask, connections=callers, seconds=seconds, pids=self.pids())


@contextlib.contextmanager
def contenders(folder: Path, models: Path) -> Iterator[list[Contender]]:
    """All servers, started one after the other and kept until the end."""
    starts = (_peers.fastapi, _peers.mlserver, _peers.triton, functools.partial(_peers.triton, batching=True))
    with contextlib.ExitStack() as started:
        found = [_contender(started.enter_context(start(folder, models))) for start in starts]
        ours = started.enter_context(worker(folder))
        artifacts = {name: models / f"{name}.{'skops' if name == 'iris' else 'onnx'}" for name in FORMATS}
        for name, version in FORMATS.items():
            ours.load(name, artifacts[name], **version)
        found.append(Contender(WORKER, ours.address, ours.address, lambda: ours.pids, (), _more(ours), 200))
        with on_cores(SERVER_CORE):
            running = started.enter_context(mesh("--workers", "1"))
        deploy(running, artifacts)
        pids = [pid for part in running.parts().values() for pid in part]
        found.append(Contender(MESH, running.gateway, running.gateway, lambda: pids))
        yield found


def _contender(server: Server) -> Contender:
    prepare = server.prepare

    def more(name: str, path: Path) -> float:
        assert prepare is not None
        prepare(name, path)
        return server.load(name)

    load_more = None if prepare is None else more
    return Contender(server.name, server.rest, server.grpc, server.pids, server.lacks, load_more, server.extra)


def _more(ours: Worker) -> Callable[[str, Path], float]:
    def more(name: str, path: Path) -> float:
        return ours.load(name, path, format="onnx" if path.suffix == ".onnx" else "sklearn")

    return more


def verify(one: Contender, case: Case) -> None:
    """Ask once and look at the answer, since the load generator sees statuses of HTTP only."""
    body = case.ask.body.read_bytes()
    if one.rest.startswith("unix:"):
        connection = UnixConnection(Path(one.rest.removeprefix("unix:")))
        status, said = connection.post(case.ask.path, body, dict(case.on_worker().ask.headers))
        connection.close()
        right = status == 200 and (case.ask.http2 or b'"outputs"' in said)
        message = said[5:] if case.ask.http2 else b""
    elif case.ask.http2:
        assert one.grpc is not None
        with grpc.insecure_channel(
            one.grpc.removeprefix("http://"), [("grpc.max_receive_message_length", -1)]
        ) as channel:
            message = channel.unary_unary(INFER_GRPC)(oip_grpc.unframe(body), timeout=60)
            right = True
    else:
        request = urllib.request.Request(one.rest + case.ask.path, body, dict(case.ask.headers), method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            message, right = b"", b'"outputs"' in answer.read()
    if message:
        right = right and bool(pb.ModelInferResponse.FromString(message).outputs)
    if not right:
        raise RuntimeError(f"{one.name} does not answer {case.name}")


def measure(folder: Path, servers: list[Contender], rounds: int, seconds: float) -> Runs:
    """Every workload on every server once in a round; the order changes."""
    asked = cases(folder / "bodies")
    turns = [(case.name, case, case.callers) for case in asked]
    turns += [(case.name + OF_ONE, case, 1) for case in asked if case.name in (REST, IRIS)]
    found: Runs = {name: {} for name, _, _ in turns}
    for one in servers:
        for case in filter(one.takes, asked):
            verify(one, case)
            one.run(case, case.callers, 1.0)
    for number in range(rounds):
        for name, case, callers in turns:
            for one in servers if number % 2 == 0 else servers[::-1]:
                if one.takes(case):
                    found[name].setdefault(one.name, []).append(one.run(case, callers, seconds))
    return found


def further(one: Contender, kind: str, paths: list[Path]) -> tuple[float, float]:
    """MiB and ms of one more model, where the server loads at all."""
    assert one.more is not None
    one.more(f"{kind}-first", paths[0])
    before = pss_bytes(one.pids())
    times = [one.more(f"{kind}-{number}", path) for number, path in enumerate(paths[1 : one.count + 1])]
    return (pss_bytes(one.pids()) - before) / len(times) / 2**20, statistics.median(times) * 1000


def run(quick: bool) -> list[Figure]:
    rounds, seconds = (2, 1.0) if quick else (7, 3.0)
    with run_folder() as folder:
        write_models(folder / "models")
        with contenders(folder, folder / "models") as servers:
            loading = [one for one in servers if one.more is not None]
            kinds = {"ONNX": networks(folder / "more", 201), "scikit-learn": classifiers(folder / "skops", 201)}
            stored = classifiers(folder / "joblib", 201, ".joblib")
            more = {
                (kind, one.name): further(one, kind[:4], stored if one.name != WORKER and kind != "ONNX" else paths)
                for kind, paths in kinds.items()
                for one in loading
            }  # before the load, whose garbage would hide what a model takes
            found = measure(folder, servers, rounds, seconds)
    figures = [
        Figure(f"{name}: {server}", statistics.median(_value(name, one) for one in runs), _unit(name), "", None)
        for name, by_server in found.items()
        for server, runs in by_server.items()
    ]
    for (kind, server), (mib, ms) in more.items():
        figures.append(Figure(f"one more {kind} model, memory: {server}", mib, "MiB", "", None))
        figures.append(Figure(f"one more {kind} model, load: {server}", ms, "ms", "", None))
    return [*figures, *ratios(found), *_of_more(more)]


def _value(name: str, run: Run) -> float:
    return run.p50_ms if name.endswith(OF_ONE) else run.cpu_us


def _unit(name: str) -> str:
    return "ms p50" if name.endswith(OF_ONE) else "us/req"


def ratios(found: Runs) -> list[Figure]:
    """Our processor time (our p50 for one caller) by that of others, the median of rounds, against the goals."""
    image = min(
        (name for name in found[IMAGE] if name not in (WORKER, MESH)),
        key=lambda name: statistics.median(run.cpu_us for run in found[IMAGE][name]),
    )
    batched = "Triton, dynamic batching"
    wanted: list[tuple[str, str, str, float | None]] = [
        (REST, WORKER, TRITON, 1 / 3),
        (REST, WORKER, MLSERVER, 1 / 20),
        (REST, MESH, TRITON, 0.85),
        (REST, MESH, batched, None),
        (GRPC, MESH, TRITON, 0.95),
        (GRPC, MESH, batched, None),
        (GRPC, MESH, MLSERVER, 1 / 8),
        (IRIS, WORKER, TRITON, 1 / 2),
        (IRIS, WORKER, batched, None),
        (IRIS, WORKER, MLSERVER, 1 / 6),
        (IMAGE, WORKER, image, 1 / 2),
        (IMAGE, MESH, image, None),
        (BINARY, MESH, TRITON, 1.2),
        (REST + OF_ONE, MESH, TRITON, 1.0),
        (IRIS + OF_ONE, MESH, TRITON, 1.0),
    ]
    figures = []
    for name, ours, theirs, goal in wanted:
        pairs = zip(found[name][ours], found[name][theirs], strict=True)
        ratio = statistics.median(_value(name, one) / _value(name, other) for one, other in pairs)
        figures.append(_goal(f"{name}: {ours} / {theirs}", ratio, "ratio", goal))
    pairs = zip(found[REST][MESH], found[REST][MLSERVER], strict=True)
    speed = statistics.median(one.per_second / other.per_second for one, other in pairs)
    return [*figures, Figure(f"{REST}, requests/s: {MESH} / {MLSERVER}", speed, "ratio", ">= 5", speed >= 5)]


def _of_more(more: dict[tuple[str, str], tuple[float, float]]) -> list[Figure]:
    figures = []
    for kind in ("ONNX", "scikit-learn"):
        (mib, ms), (theirs, _) = more[kind, WORKER], more[kind, MLSERVER]
        figures.append(_goal(f"one more {kind} model, memory of our worker", mib, "MiB", theirs))
        figures.append(_goal(f"one more {kind} model, load into our worker", ms, "ms", 5.0))
    return figures


def _goal(name: str, value: float, unit: str, most: float | None) -> Figure:
    goal, met = ("", None) if most is None else (f"<= {most:.3g}", value <= most)
    return Figure(name, value, unit, goal, met)


def table(figures: list[Figure]) -> str:
    """The measured values side by side, a row for each workload."""
    rows: dict[str, dict[str, str]] = {}
    for figure in figures:
        what, colon, server = figure.name.rpartition(": ")
        if colon and figure.met is None and " / " not in server:
            rows.setdefault(f"{what} ({figure.unit})", {})[server] = f"{figure.value:,.3g}"
    servers = list(dict.fromkeys(server for row in rows.values() for server in row))
    lines = ["| | " + " | ".join(servers) + " |", "|---|" + "--:|" * len(servers)]
    lines += [f"| {what} | " + " | ".join(row.get(s, "-") for s in servers) + " |" for what, row in rows.items()]
    return "\n".join(lines)
