"""Starts and supervises the probation process, which tries a version in a child of its own and measures it.

A version that crashes, hangs or eats memory does so there; no worker ever sees it. The process is started
with the node and again whenever it is gone; it holds nothing that would be missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from msm.kit.clock import Clock
from msm.kit.errors import DeadlineExceeded, Internal, LoadFailed, MsmError, Unavailable
from msm.kit.tasks import Tasks, backoff_s
from msm.node.config import NodeSettings
from msm.node.http_unix import UnixHttp
from msm.node.journal import Journal
from msm.node.process import Process, python_argv, rotate, spawn
from msm.node.worker_records import WorkerRecord, read_records, write_records
from msm.resources.meta import to_plain
from msm.resources.serving import Signature, VersionSpec

T = TypeVar("T")
READY_POLL_S = 0.02
MARGIN_S = 30.0


class ProbeResult(msgspec.Struct, frozen=True):
    """What a trial found: the cost of one more copy, and what it takes and gives."""

    format: str
    signature: Signature | None
    memory_bytes: int
    load_seconds: float
    predict_seconds: float | None = None


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a conversion (see `msm.resources.serving.Acceleration`)."""

    used: bool
    reason: str
    way: str | None = None
    rtol: float | None = None
    atol: float | None = None
    largest_difference: float | None = None
    inputs: int = 0
    speed_one: float | None = None
    speed_batch: float | None = None


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    reason: str = "load_failed"


class Probation:
    """The probation process of a node."""

    def __init__(
        self, settings: NodeSettings, journal: Journal, tasks: Tasks, clock: Clock, environment: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self._environment = environment
        self._socket = settings.run_dir / "probe.sock"
        self._record = settings.run_dir / "probation.json"
        self._log = settings.data_dir / "logs" / "probation.log"
        self._http = UnixHttp(str(self._socket), "the probation process")
        self._process: Process | None = None

    async def start(self) -> None:
        """Start the process; returns at once, the first trial waits until it is ready."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        for record in read_records(self._record):
            leftover = Process.open(record.pid, record.start_ticks)
            if leftover is not None:  # of a node process that was killed
                await leftover.kill()
        self._tasks.start("probation", self._live())

    async def close(self) -> None:
        """End the process. It holds nothing worth keeping, so a node that leaves its workers running ends it too."""
        if self._process is not None:
            await self._process.stop(self._settings.stop_s)
        await self._http.close()
        for leftover in (self._socket, self._record):
            leftover.unlink(missing_ok=True)

    async def _live(self) -> None:
        failures = 0
        while True:
            began = self._clock.monotonic()
            self._process = self._spawn()
            if self._process is not None:
                await self._process.died.wait()
                self._journal.note(
                    "probation", "ProbationLost", f"the probation process ended: {self._process.ended_how}",
                    severity="warning",
                )  # fmt: skip
                self._process = None
            failures = 0 if self._clock.monotonic() - began > 60.0 else failures + 1
            await self._clock.sleep(backoff_s(failures))

    def _spawn(self) -> Process | None:
        self._socket.unlink(missing_ok=True)
        argv = python_argv("msm.runtime.probation", "--socket", str(self._socket))
        try:
            rotate(self._log, self._settings.log_bytes)
            pid = spawn(argv, self._log, self._environment)
        except OSError as error:
            message = f"the probation process could not be started: {error.strerror}"
            self._journal.note("probation", "ProbationNotStarted", message, severity="error")
            return None
        process = Process.open(pid)
        if process is not None:
            write_records(self._record, [WorkerRecord(id="probation", pid=pid, start_ticks=process.ticks)])
        return process

    async def probe(
        self, path: str, spec: VersionSpec, timeout_s: float, *, accelerated: str | None = None
    ) -> ProbeResult:
        """Try the version at `path`, or the converted model that is to serve in its place. Raises LoadFailed with the
        load's own reason; Unavailable when the probation process itself is gone, which says nothing about the
        version."""
        more = {"accelerated": accelerated}
        return await self._ask("/probe", self._order(path, spec, timeout_s) | more, timeout_s, ProbeResult)

    async def accelerate(self, path: str, spec: VersionSpec, target: str, timeout_s: float) -> Converted:
        """Convert the version at `path` and write the outcome to `target` if it is to be used. Raises as `probe`."""
        more = {"target": target}
        return await self._ask("/accelerate", self._order(path, spec, timeout_s) | more, timeout_s, Converted)

    def _order(self, path: str, spec: VersionSpec, timeout_s: float) -> dict[str, Any]:
        return {
            "path": path,
            "format": spec.format,
            "trusted": spec.trusted,
            "parameters": spec.parameters,
            "signature": to_plain(spec.signature) if spec.signature else None,
            "timeout_s": timeout_s,
            "memory_limit_bytes": self._settings.probe_memory_bytes,
        }

    async def _ask(self, call: str, order: dict[str, Any], timeout_s: float, kind: type[T]) -> T:
        await self._ready()
        try:
            answer = await self._http.call("POST", call, order, timeout_s=timeout_s + MARGIN_S)
        except DeadlineExceeded as error:
            raise LoadFailed(f"the trial did not end within {timeout_s:g} s", reason="timeout") from error
        try:
            if answer.status == 200:
                return msgspec.json.decode(answer.body, type=kind)
            refusal = msgspec.json.decode(answer.body, type=_Refusal)
        except msgspec.DecodeError as error:
            raise Internal("the probation process gave an answer that is not understood") from error
        raise LoadFailed(refusal.error, reason=refusal.reason)

    async def _ready(self) -> None:
        """Wait until the process listens: it imports the model libraries first."""
        deadline = self._clock.monotonic() + self._settings.start_timeout_s
        while not await self._listens():
            if self._clock.monotonic() > deadline:
                raise Unavailable("the probation process is not ready", reason="probation_away")
            await self._clock.sleep(READY_POLL_S)

    async def _listens(self) -> bool:
        if self._process is None or not self._socket.exists():
            return False
        try:
            await self._http.call("GET", "/v2/health/live", timeout_s=self._settings.hang_s)
        except DeadlineExceeded:
            return True  # it listens and is busy with a trial
        except MsmError:
            return False
        return True
