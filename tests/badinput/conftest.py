"""A mesh and a worker of its own, both with the models that bad input is sent to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench._mesh import Mesh, mesh
from tests.badinput.bodies import request_of
from tests.badinput.cases import HttpCase, read
from tests.badinput.mesh import Subject, Worker, address_of, worker_doors
from tests.badinput.models import CLASSES, declared, write_models
from tests.badinput.wire import Answer, Line

START_S = 20.0


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("bad-models"))


@pytest.fixture(scope="session")
def subject(artifacts: dict[str, Path]) -> Iterator[Subject]:
    """A mesh whose good models are in memory and whose failed one has failed."""
    with mesh("--workers", "1") as started:
        started.apply([declared(name, path) for name, path in artifacts.items()])
        started.wait_ready(len(artifacts) - 1, within_s=60)
        with ThreadPoolExecutor(1) as threads:
            yield Subject(started, threads.submit(_slowly, started))


@pytest.fixture(scope="session")
def worker(artifacts: dict[str, Path]) -> Iterator[Worker]:
    """A worker process by itself, as the node starts it."""
    with tempfile.TemporaryDirectory(prefix="msm-bad-") as folder:
        run = Path(folder)
        data, control = run / "w0.sock", run / "w0.ctl.sock"
        options = ("--id", "w0", "--data", data, "--control", control, "--blackbox", run / "w0.box")
        with (run / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "msm.runtime", *map(str, options)], stdout=log, stderr=log, env=dict(os.environ)
            )
        try:
            _wait_for(control, process, run / "log")
            started = worker_doors(data, control)
            for name, path in artifacts.items():
                if name != "failed":
                    started.load(name, {"path": str(path), "digest": f"sha256:{name}", "trusted": name in CLASSES})
            yield started
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def _slowly(started: Mesh) -> Answer:
    """The answer to the request of the catalogue whose head comes slowly."""
    (case,) = [case for case in read("http", HttpCase) if case.pace_s is not None]
    sent = request_of(case, "gateway")
    with Line(address_of(started.gateway)) as line:
        return line.ask_paced([sent[at : at + 1] for at in range(len(sent))], every_s=case.pace_s or 0, within_s=20)


def _wait_for(socket: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not socket.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "the worker does not start"
        time.sleep(0.01)
