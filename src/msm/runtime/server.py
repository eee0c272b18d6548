"""The worker process: its two sockets, its signals, its end. Puts the parts together and decides nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msm.http.request import plain_refusal
from msm.http.server import Listener
from msm.kit.tasks import Tasks
from msm.runtime import memory
from msm.runtime.blackbox import BlackBox
from msm.runtime.control import ControlApp
from msm.runtime.data import KNOWN_HEADERS, DataApp
from msm.runtime.engine import Shell
from msm.runtime.lag import LagMeter
from msm.runtime.repository import Repository
from msm.runtime.streams import comes_in_pieces
from msm.runtime.threads import Threads

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
DRAIN_S: Final = 30.0
_BACKLOG: Final = 4096
_LOADERS: Final = 2


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is started with. `threads` bounds the slow predictions that run at once, over all versions."""

    id: str
    data: Path
    control: Path
    blackbox: Path
    max_body_bytes: int = MAX_BODY_BYTES
    threads: int = 4
    drain_s: float = DRAIN_S


def open_socket(path: Path) -> socket.socket:
    """A listening unix socket that only its owner may use. A stale one at the same path is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


async def run(options: WorkerOptions) -> None:
    """Serve until SIGTERM, then answer what was accepted and return. Survives the death of the parent."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):  # the node ends workers, not the terminal
        signal.signal(number, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    box = BlackBox(options.blackbox)
    shell = Shell(loop, Threads(options.threads, "predict"), box, LagMeter(loop))
    async with Tasks(_report) as tasks:
        repository = Repository(shell, Threads(_LOADERS, "load"), tasks)
        data = DataApp(options.id, repository, tasks, options.max_body_bytes)
        control = ControlApp(options.id, repository, tasks)
        listeners = (
            Listener(data.handle, data.refuse, options.max_body_bytes, KNOWN_HEADERS, comes_in_pieces),
            Listener(control.handle, plain_refusal, options.max_body_bytes),
        )
        sockets = (open_socket(options.data), open_socket(options.control))
        servers = [
            await loop.create_unix_server(listener.connect, sock=opened, backlog=_BACKLOG)
            for listener, opened in zip(listeners, sockets, strict=True)
        ]
        log.info("ready", extra={"pid": os.getpid()})
        gc.freeze()
        await stop.wait()
        log.info("stopping")
        for server in servers:
            server.close()
        data.draining = True
        await repository.stop(options.drain_s)
        for listener in listeners:
            listener.stop()
        await asyncio.sleep(0)
    log.info("stopped")


def _report(name: str, failure: BaseException) -> None:
    log.error("a task failed", extra={"task": name}, exc_info=failure)


def prepare_process() -> None:
    """Settings of the interpreter and the allocator, once, before anything is loaded."""
    memory.limit_arenas()
    # A model in pure Python keeps the interpreter's lock for this long while the event loop waits.
    sys.setswitchinterval(0.001)
