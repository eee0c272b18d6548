"""Probation: tries versions in children of its own, so that no model's first load can hurt a worker.

`python -m msm.runtime.probation --socket PATH`. The process imports the model libraries once, then forks a child for
each probe, which starts in milliseconds and shares their memory. It must have a single thread when it forks, so it
never loads a model itself and has no thread pool.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from msm.runtime import environment

environment.set_up(threads="1")  # pools would be threads of the process that forks

import msgspec  # noqa: E402

from msm.http.request import Request, json_answer, plain_refusal  # noqa: E402
from msm.http.server import Listener  # noqa: E402
from msm.kit.errors import InvalidInput, MsmError, NotFound  # noqa: E402
from msm.kit.tasks import Tasks  # noqa: E402
from msm.runtime import formats, logs, memory  # noqa: E402
from msm.runtime.acceleration.work import AccelerateSpec, accelerate  # noqa: E402
from msm.runtime.measure import ProbeSpec, measure  # noqa: E402
from msm.runtime.probe import ProbeFailed, Spec, Work, probe  # noqa: E402
from msm.runtime.server import open_socket  # noqa: E402

log = logging.getLogger(__name__)
T = TypeVar("T")

LIBRARIES: Final = (
    "numpy", "pandas", "scipy.sparse", "sklearn.compose", "sklearn.ensemble", "sklearn.linear_model",
    "sklearn.neural_network", "sklearn.pipeline", "sklearn.svm", "sklearn.tree", "msm.runtime.formats.skops_io",
    "joblib",
    "xgboost", "lightgbm", "google.protobuf",
)  # fmt: skip
PREPARED: Final = ("onnx",)  # formats of which the process may run something without keeping a thread
_MAX_BODY: Final = 4 * 1024 * 1024


class ProbationApp:
    """Answers `POST /probe`, `POST /accelerate` and `GET /v2/health/live`.

    At most `at_once` of the first two run; further ones wait.
    """

    def __init__(self, tasks: Tasks, at_once: int) -> None:
        self._tasks = tasks
        self._free = asyncio.Semaphore(at_once)

    def handle(self, request: Request) -> None:
        """Answer a request; a probe when its child has ended. A caller that goes ends its probe."""
        if request.method == b"POST" and request.path == b"/probe":
            spec = _decoded(request.body, ProbeSpec)
            request.task = self._tasks.start("probe", self._try(request, spec, partial(measure, spec)))
        elif request.method == b"POST" and request.path == b"/accelerate":
            order = _decoded(request.body, AccelerateSpec)
            request.task = self._tasks.start("accelerate", self._try(request, order, partial(accelerate, order)))
        elif request.method == b"GET" and request.path == b"/v2/health/live":
            request.respond(json_answer(200, _live()))
        else:
            raise NotFound(f"there is no path {request.path[:100].decode('latin-1')!r} here", reason="no_such_path")

    async def _try(self, request: Request, spec: Spec, work: Work) -> None:
        async with self._free:
            started = time.monotonic()
            try:
                result = await probe(spec, work)
            except (ProbeFailed, MsmError) as error:
                log.info("refused", extra={"reason": error.reason, "error": error.message})
                request.respond(json_answer(422, {"error": error.message, "reason": error.reason}))
                return
            what = "measured" if isinstance(spec, ProbeSpec) else "accelerated" if result["used"] else "not accelerated"
            log.info(what, extra={"seconds": round(time.monotonic() - started, 3), "format": spec.format})
            request.respond(json_answer(200, result))


def _live() -> dict[str, Any]:
    threads = len(list(Path("/proc/self/task").iterdir()))
    return {"live": True, "pid": os.getpid(), "rss_bytes": memory.resident_bytes(), "threads": threads}


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is wrong: {str(error).replace('`', chr(39))}", reason="invalid_body") from error


def import_libraries() -> list[str]:
    """Import what is installed of the model libraries; returns their names."""
    found: list[str] = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        found.append(name)
    for name in PREPARED:
        formats.prepare(name)
    return found


async def run(path: Path, at_once: int) -> None:
    """Serve until SIGTERM; probes that still run are ended."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with Tasks(lambda name, failure: log.error("a task failed", extra={"task": name}, exc_info=failure)) as tasks:
        listener = Listener(ProbationApp(tasks, at_once).handle, plain_refusal, _MAX_BODY)
        opened = open_socket(path)
        started = time.monotonic()
        libraries = import_libraries()
        gc.freeze()  # keeps the collector of each child away from the pages that it shares
        server = await loop.create_unix_server(listener.connect, sock=opened)
        log.info("ready", extra={"libraries": libraries, "import_seconds": round(time.monotonic() - started, 3)})
        await stop.wait()
        server.close()
        listener.stop()


def main(arguments: list[str]) -> None:
    """Run the probation process until SIGTERM."""
    parser = argparse.ArgumentParser("python -m msm.runtime.probation", description="Tries and measures versions.")
    parser.add_argument("--socket", required=True, type=Path, help="unix socket of the node process")
    parser.add_argument("--probes", type=int, default=os.cpu_count() or 1, help="probes that may run at once")
    options = parser.parse_args(arguments)
    logs.set_up("probation")
    asyncio.run(run(options.socket, max(1, options.probes)))


if __name__ == "__main__":
    main(sys.argv[1:])
