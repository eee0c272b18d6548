"""The adapter process: its server, its two sockets, its signals, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msm.adapter.data import KNOWN_HEADERS, DataApp
from msm.adapter.hosts import Host, OwnServers, SharedServer
from msm.adapter.processes import ServerProcess, end_leftovers
from msm.adapter.repository import Repository
from msm.adapter.spec import ServerSpec
from msm.http.request import plain_refusal
from msm.http.server import Listener
from msm.kit.errors import MsmError
from msm.kit.tasks import Tasks
from msm.runtime.blackbox import BlackBox
from msm.runtime.control import ControlApp
from msm.runtime.server import MAX_BODY_BYTES, open_socket

log = logging.getLogger(__name__)

DRAIN_S: Final = 4.0
MEASURE_S: Final = 2.0
HANG_S: Final = 60.0
FAULT: Final = "fault"


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """What an adapter is started with. `work` is its own folder."""

    id: str
    data: Path
    control: Path
    blackbox: Path
    spec: ServerSpec
    work: Path


class Adapter:
    """One adapter. `run` serves until SIGTERM, or until the server it stands for has ended."""

    def __init__(self, options: AdapterOptions, tasks: Tasks) -> None:
        self._options = options
        self._tasks = tasks
        self._stop = asyncio.Event()
        self._lost: ServerProcess | None = None
        self._resident = 0
        self._box = BlackBox(options.blackbox)
        self._host = self._make_host()
        self._repository = Repository(self._host, tasks)

    def _make_host(self) -> Host:
        spec, work = self._options.spec, self._options.work
        if spec.one_process_per_model:
            return OwnServers(spec, work, lambda target: self._repository.lost(target))
        return SharedServer(spec, work, self._server_ended)

    def _server_ended(self, process: ServerProcess) -> None:
        if not self._stop.is_set():
            self._lost = process
            log.error("the server ended", extra={"how": process.ended_how})
            # At once, with the black box as it is: what was executing is what ended it.
            end_like(process)

    async def run(self) -> None:
        """Raises LoadFailed when the server cannot be started."""
        options, loop = self._options, asyncio.get_running_loop()
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        if not await self._started():
            return
        data = DataApp(options.id, self._repository, self._tasks, self._box, openai=options.spec.protocol == "openai")
        control = ControlApp(options.id, self._repository, self._tasks, lambda: self._resident)
        listeners = (
            Listener(data.handle, data.refuse, MAX_BODY_BYTES, KNOWN_HEADERS),
            Listener(control.handle, plain_refusal, MAX_BODY_BYTES),
        )
        sockets = (open_socket(options.data), open_socket(options.control))
        servers = [
            await loop.create_unix_server(listener.connect, sock=opened)
            for listener, opened in zip(listeners, sockets, strict=True)
        ]
        self._tasks.start("measure", self._measure())
        if isinstance(self._host, SharedServer):
            self._tasks.start("watch", self._watch(self._host))
        log.info("ready", extra={"pid": os.getpid()})
        await self._stop.wait()
        log.info("stopping")
        for server in servers:
            server.close()
        data.draining = True
        await self._repository.stop(DRAIN_S)
        for listener in listeners:
            listener.stop()
        await self._host.stop()

    async def _started(self) -> bool:
        """Start the server; False when this process was told to stop meanwhile."""
        await asyncio.to_thread(end_leftovers, self._options.work)
        starting = self._tasks.start("start the server", self._host.start())
        stopping = self._tasks.start("wait for the end", self._stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            return False
        stopping.cancel()
        starting.result()
        return True

    async def _measure(self) -> None:
        """Keep the memory of the servers at hand: reading it takes milliseconds, asking for it must not."""
        while True:
            self._resident = await asyncio.to_thread(self._host.memory_bytes)
            await asyncio.sleep(MEASURE_S)

    async def _watch(self, host: SharedServer) -> None:
        """End a server that is silent for a minute although nothing is loaded in it."""
        loop = asyncio.get_running_loop()
        answered = loop.time()
        while True:
            try:
                async with asyncio.timeout(HANG_S):
                    await host.answers()
                answered = loop.time()
            except (TimeoutError, MsmError):
                pass
            if host.busy:
                answered = loop.time()
            if loop.time() - answered >= HANG_S:
                log.error("the server hangs", extra={"silent_s": round(loop.time() - answered)})
                host.kill()
            await asyncio.sleep(MEASURE_S)


def end_like(process: ServerProcess) -> None:
    """End this process as its server ended, so that the node judges the one by the other."""
    process.kill()
    logging.shutdown()
    if process.returncode == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


async def run(options: AdapterOptions) -> None:
    """Run an adapter to its end."""
    options.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    fault = options.work / FAULT
    fault.unlink(missing_ok=True)
    async with Tasks(_report) as tasks:
        try:
            await Adapter(options, tasks).run()
        except MsmError as error:
            fault.write_text(error.message)
            raise


def _report(name: str, failure: BaseException) -> None:
    if not isinstance(failure, MsmError):
        log.error("a task failed", extra={"task": name}, exc_info=failure)
