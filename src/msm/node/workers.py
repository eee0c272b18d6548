"""Supervises the model processes: starts, adopts, watches, replaces and ends them.

Decides nothing about models. It tells its listener which workers are ready and which were lost, with the
versions that were executing; `msm.planning.recovery` says when a dead one starts again. It signals only
processes that it started or adopted, and names them by pidfd.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from msm.kit.clock import Clock
from msm.kit.errors import MsmError
from msm.kit.tasks import Tasks
from msm.node.blackbox import executing
from msm.node.config import NodeSettings
from msm.node.journal import Journal
from msm.node.process import Process, oom_kills, python_argv, rotate, spawn
from msm.node.runtimes import ServerPlan, adapter_argv, fault_of, told_to, write_server_file
from msm.node.worker_client import WorkerClient
from msm.node.worker_records import WorkerRecord, read_records, write_records
from msm.planning import recovery
from msm.resources.observed import WorkerState, WorkerStatus
from msm.resources.serving import VersionKey

ADOPT_PATIENCE_S = 5.0
START_POLL_S = 0.02
LOG_CHECK_S = 30.0


class WorkerListener(Protocol):
    """Hears of workers; called from the event loop, must not block."""

    def worker_ready(self, worker: Worker, *, adopted: bool) -> None: ...
    def worker_lost(self, worker: Worker, blame: recovery.Blame) -> None: ...
    def worker_gone(self, worker: Worker) -> None: ...


@dataclass(slots=True, eq=False)
class Worker:
    """One place for a model process; the process in it may be replaced.

    `life` counts the processes, so that an answer of one is not taken for its successor's. With `server` the process
    is an adapter with an external server behind it, `folder` its own folder and `fault` why that server did not start.
    """

    id: str
    run_dir: Path
    log: Path
    dedicated: VersionKey | None = None
    server: ServerPlan | None = None
    folder: Path = Path()
    fault: str = ""
    state: WorkerState = "Starting"
    process: Process | None = None
    life: int = 0
    restarts: int = 0
    rss_bytes: int = 0
    message: str | None = None
    retiring: bool = False
    condemned: bool = False
    oom_kills: int = 0  # of the machine, before this process began
    client: WorkerClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = WorkerClient(self.id, str(self.control))

    @property
    def data(self) -> Path:
        """The socket that inference reaches."""
        return self.run_dir / f"{self.id}.sock"

    @property
    def control(self) -> Path:
        return self.run_dir / f"{self.id}.ctl.sock"

    @property
    def box(self) -> Path:
        return self.run_dir / f"{self.id}.box"

    @property
    def ready(self) -> bool:
        return self.state == "Ready"

    @property
    def runtime(self) -> str:
        """The runtime whose server it drives ("namespace/name"), empty for the built-in worker."""
        return self.server.runtime if self.server is not None else ""

    async def died(self, within_s: float) -> bool:
        """Whether the process is gone, or will be within a moment: a broken connection is seen before its end."""
        return self.process is None or await self.process.ended(within_s)

    def argv(self) -> list[str]:
        places = ["--data", str(self.data), "--control", str(self.control), "--blackbox", str(self.box)]
        if self.server is not None:
            return adapter_argv(self.id, places, self.folder)
        return python_argv("msm.runtime", "--id", self.id, *places)


class Workers:
    """The node's model processes."""

    def __init__(
        self, settings: NodeSettings, listener: WorkerListener, journal: Journal, tasks: Tasks, clock: Clock
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self._workers: dict[str, Worker] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._record = settings.run_dir / "workers.json"
        self._logs = settings.data_dir / "logs"
        self._servers = settings.data_dir / "servers"
        self.adopted = 0

    # ---- what there is

    def all(self) -> Iterable[Worker]:
        return self._workers.values()

    def get(self, worker: str) -> Worker | None:
        return self._workers.get(worker)

    def status(self, worker: Worker, copies: int) -> WorkerStatus:
        """A worker as people see it."""
        return WorkerStatus(
            id=worker.id,
            state=worker.state,
            pid=worker.process.pid if worker.process else None,
            rss_bytes=worker.rss_bytes,
            copies=copies,
            restarts=worker.restarts,
            message=worker.message,
            runtime=worker.runtime or None,
        )

    def overhead_bytes(self) -> int:
        """What the external servers take before any model."""
        return sum(w.server.overhead_bytes for w in self._workers.values() if w.server and w.process is not None)

    # ---- begin and end

    async def start(self, plan_of: Callable[[str], ServerPlan | None]) -> None:
        """Adopt what lives of an earlier node process, start what is missing.

        `plan_of(runtime)` says how the servers of a runtime are run now; those that run otherwise are ended. Returns
        when the adopted ones have answered (or were found dead); new ones get ready in the background.
        """
        self._settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        shared = [f"w{number}" for number in range(self._settings.workers)]
        adopted: list[asyncio.Event] = []
        for record in read_records(self._record):
            process = Process.open(record.pid, record.start_ticks)
            if process is None:
                continue
            plan = plan_of(record.runtime) if record.runtime else None
            place = self._place(record.id, VersionKey.parse(record.dedicated) if record.dedicated else None, plan)
            place.process = process
            if record.runtime:
                kept = plan is not None and told_to(place.folder) == plan.text
            else:
                kept = record.dedicated is not None or record.id in shared
            if not kept:
                self._add(place)
                self._end(place)
                continue
            answered = asyncio.Event()
            adopted.append(answered)
            self._add(place, answered)
        for worker in shared:
            if worker not in self._workers:
                self._add(self._place(worker))
        self._write_record()
        for answered in adopted:
            await answered.wait()

    async def close(self, *, stop: bool) -> None:
        """Let go of the processes, or end them (SIGTERM, then SIGKILL). Call it after the tasks were ended."""
        places = list(self._workers.values())
        living = [worker.process for worker in places if worker.process is not None]
        if stop:
            await asyncio.gather(*(process.stop(self._settings.stop_s) for process in living))
            self._workers.clear()
            await asyncio.to_thread(write_records, self._record, [])
        await asyncio.gather(*(worker.client.close() for worker in places))
        for process in living:
            process.release()

    # ---- orders

    def dedicate(self, key: VersionKey, plan: ServerPlan | None = None) -> None:
        """Start a process for `key` alone, if there is none; with `plan` a server of a runtime."""
        if not any(worker.dedicated == key for worker in self._workers.values()):
            self._add(self._place(self._free_name("d"), key, plan))

    def open(self, plan: ServerPlan) -> None:
        """Start the servers of a runtime that are not there."""
        have = sum(w.runtime == plan.runtime and w.dedicated is None and not w.retiring for w in self._workers.values())
        for _ in range(plan.workers - have):
            self._add(self._place(self._free_name("r"), None, plan))

    def renew(self, runtime: str, plan: ServerPlan | None) -> None:
        """End the servers of a runtime that is declared otherwise now (None: no more); new ones start when needed."""
        for place in list(self._workers.values()):
            if place.runtime == runtime and not place.retiring and place.server is not None:
                if plan is None or place.server.text != plan.text:
                    self._end(place)
                else:
                    place.server = plan
        living = [w for w in self._workers.values() if w.runtime == runtime and w.dedicated is None and not w.retiring]
        if plan is not None and living:
            for surplus in living[plan.workers :]:
                self._end(surplus)
            self.open(plan)

    def retire(self, worker: str) -> None:
        """End a dedicated process, or a server of a runtime, and its place."""
        place = self._workers.get(worker)
        if place is not None and (place.dedicated is not None or place.server is not None) and not place.retiring:
            self._end(place)

    def _free_name(self, prefix: str) -> str:
        return next(name for n in range(len(self._workers) + 1) if (name := f"{prefix}{n}") not in self._workers)

    def _end(self, place: Worker) -> None:
        place.retiring = True
        place.state = "Stopping"
        if place.process is not None:
            self._tasks.start(f"end worker {place.id}", place.process.stop(self._settings.stop_s))
        else:
            self._loops[place.id].cancel()
            self._remove(place)

    def condemn(self, worker: str, reason: str) -> None:
        """Kill a worker that hangs; it is replaced as after a crash."""
        place = self._workers.get(worker)
        if place is None or place.process is None or not place.ready:
            return
        place.state = "Stopping"
        place.message = reason
        place.condemned = True
        message = f"worker {worker} hangs: {reason}; it is ended and replaced"
        self._journal.note(f"worker/{worker}", "WorkerHangs", message, severity="error")
        place.process.signal(signal.SIGKILL)

    # ---- one worker's life

    def _place(self, name: str, owner: VersionKey | None = None, plan: ServerPlan | None = None) -> Worker:
        folder = self._servers / name
        return Worker(name, self._settings.run_dir, self._logs / f"{name}.log", owner, plan, folder)

    def _add(self, worker: Worker, answered: asyncio.Event | None = None) -> None:
        self._workers[worker.id] = worker
        self._loops[worker.id] = self._tasks.start(f"worker {worker.id}", self._live(worker, answered))

    async def _live(self, worker: Worker, answered: asyncio.Event | None) -> None:
        """Keep a process in this place for as long as the node runs."""
        in_a_row = 0
        adopted = worker.process is not None
        while True:
            began = self._clock.monotonic()
            worker.life += 1
            worker.condemned, worker.oom_kills = False, oom_kills()
            process = worker.process or self._spawn(worker)
            if process is not None:
                await self._one_life(worker, process, adopted=adopted, answered=answered)
                await worker.client.close()
            if answered is not None:
                answered.set()
            if worker.retiring:
                break
            again = recovery.restart(in_a_row, self._clock.monotonic() - began)
            in_a_row, adopted = again.in_a_row, False
            worker.restarts += 1
            await self._clock.sleep(again.delay_s)
        self._remove(worker)

    def _spawn(self, worker: Worker) -> Process | None:
        """Start a process and record it, in one step: none may be left that no record names."""
        worker.state = "Starting"
        for leftover in (worker.data, worker.control, worker.box):
            leftover.unlink(missing_ok=True)
        try:
            rotate(worker.log, self._settings.log_bytes)
            if worker.server is not None:
                write_server_file(worker.folder, worker.server.text)
            pid = spawn(worker.argv(), worker.log, self._environment())
        except OSError as error:
            worker.message = f"it could not be started: {error.strerror}"
            self._journal.note(f"worker/{worker.id}", "WorkerNotStarted", worker.message, severity="error")
            return None
        worker.process = Process.open(pid)
        self._write_record()
        return worker.process

    async def _one_life(
        self, worker: Worker, process: Process, *, adopted: bool, answered: asyncio.Event | None
    ) -> None:
        """From the start (or adoption) of a process to its end."""
        patience_s = ADOPT_PATIENCE_S if adopted else self._settings.start_timeout_s
        if worker.server is not None and not adopted:
            patience_s = worker.server.startup_s
        if worker.retiring:
            await process.died.wait()
        elif await self._answers(worker, process, patience_s) and not worker.retiring:
            self._welcome(worker, process, adopted=adopted)
            if answered is not None:
                answered.set()
            await self._watch(worker, process)
        if not process.died.is_set():
            worker.message = worker.message or f"it did not answer within {patience_s:g} s"
            await process.kill()
        self._bury(worker, process)

    def _welcome(self, worker: Worker, process: Process, *, adopted: bool) -> None:
        worker.state, worker.message, worker.fault = "Ready", None, ""
        self.adopted += adopted
        verb = "was adopted" if adopted else "is ready"
        self._journal.note(
            f"worker/{worker.id}",
            "WorkerAdopted" if adopted else "WorkerReady",
            f"worker {worker.id} {verb}",
            data={"pid": process.pid},
        )
        self._listener.worker_ready(worker, adopted=adopted)

    def _bury(self, worker: Worker, process: Process) -> None:
        how = recovery.ending(
            process.exit_status, condemned=worker.condemned, memory_ran_out=oom_kills() > worker.oom_kills
        )
        guilt = recovery.blame(executing(worker.box), how)
        never_ready = worker.state == "Starting"
        worker.process = None
        worker.state = "Stopping" if worker.retiring else "Backoff"
        worker.rss_bytes = 0
        if worker.server is not None and never_ready and not worker.retiring:
            worker.fault = fault_of(worker.folder) or worker.message or process.ended_how
            worker.message = worker.fault
        why = worker.message or process.ended_how
        worker.message = why
        if not worker.retiring:
            names = ", ".join(str(key) for key in guilt.suspects) or "nothing"
            message = f"worker {worker.id} was lost: {why}; it was executing {names}"
            self._journal.note(f"worker/{worker.id}", "WorkerLost", message, severity="error")
        self._listener.worker_lost(worker, guilt)

    async def _answers(self, worker: Worker, process: Process, patience_s: float) -> bool:
        """Wait until the process answers on its control socket under its own name and number."""
        deadline = self._clock.monotonic() + patience_s
        while not process.died.is_set() and self._clock.monotonic() < deadline:
            if worker.control.exists():
                try:
                    live = await worker.client.live(timeout_s=self._settings.hang_s)
                except MsmError:
                    live = None  # not listening yet; the deadline decides
                if live is not None:
                    worker.rss_bytes = live.rss_bytes
                    return live.pid == process.pid and live.id == worker.id
            await process.ended(START_POLL_S)
        return False

    async def _watch(self, worker: Worker, process: Process) -> None:
        """Return when the process has ended, or has to: its event loop is silent."""
        answered_at = self._clock.monotonic()
        log_checked_at = answered_at
        while not await process.ended(self._settings.health_interval_s):
            silent_s = await self._ask(worker, answered_at)
            now = self._clock.monotonic()
            if silent_s is None:
                answered_at = now
            elif not process.died.is_set():
                verdict = recovery.hangs(silent_s, (), self._settings.hang_s)
                if verdict.hangs:
                    self.condemn(worker.id, verdict.reason)
            if now - log_checked_at > LOG_CHECK_S:
                log_checked_at = now
                await asyncio.to_thread(rotate, worker.log, self._settings.log_bytes)

    async def _ask(self, worker: Worker, answered_at: float) -> float | None:
        """Ask the event loop whether it lives: None when it answered, else how long it has been silent.

        Silence counts from the last answer, but the worker always gets half of `hang_s` after the question; a
        pause of this process itself (the question took longer than it was given) is not held against the
        worker.
        """
        hang_s = self._settings.hang_s
        asked_at = self._clock.monotonic()
        given_s = max(hang_s - (asked_at - answered_at), hang_s / 2)
        try:
            live = await worker.client.live(timeout_s=given_s)
        except MsmError:
            now = self._clock.monotonic()
            return 0.0 if now - asked_at > given_s + 0.25 else now - answered_at
        worker.rss_bytes = live.rss_bytes
        return None

    # ---- housekeeping

    def _remove(self, worker: Worker) -> None:
        if self._workers.get(worker.id) is worker:
            del self._workers[worker.id]
            self._loops.pop(worker.id, None)
            self._write_record()
            self._listener.worker_gone(worker)

    def _write_record(self) -> None:
        """Small and rare (a start or an end of a process), hence on the loop."""
        records = [
            WorkerRecord(
                id=worker.id,
                pid=worker.process.pid,
                start_ticks=worker.process.ticks,
                dedicated=str(worker.dedicated) if worker.dedicated else None,
                runtime=worker.runtime or None,
            )
            for worker in self._workers.values()
            if worker.process is not None
        ]
        write_records(self._record, records)

    def _environment(self) -> dict[str, str]:
        """This process's environment without the secrets that only fetching needs."""
        s3 = self._settings.fetch.s3
        secret = {s3.key_env, s3.secret_env, s3.token_env}
        return {name: value for name, value in os.environ.items() if name not in secret}
