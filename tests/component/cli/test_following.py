"""Commands that go on until they are interrupted, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msm.observe.events import Event
from tests.component.cli.conftest import Run
from tests.support.served_api import ServedApi

MSM = str(Path(sys.executable).parent / "msm")


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def following(served: ServedApi, *arguments: str) -> Iterator[Callable[[], str]]:
    """Runs a command and gives its lines one by one; at the end it is interrupted and must end as a command does."""
    environment = {**os.environ, "MSM_HOME": str(served.data_dir), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [MSM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_interruptible,  # a shell that starts the tests in its background has it ignored
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout.readline
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(20)
        assert (code, process.stderr.read()) == (130, "")


def test_events_are_followed(served: ServedApi):
    def emit(message: str) -> None:
        event = Event(at=1_000.0, subject="model/followed", reason="Told", message=message, source="test")
        served.call(lambda: served.deps.events.emit(event))

    emit("before")
    with following(served, "events", "model/followed", "-f", "-o", "json") as line:
        assert json.loads(line())["message"] == "before"
        for number in range(20):
            emit(f"after {number}")
        assert [json.loads(line())["message"] for _ in range(20)] == [f"after {number}" for number in range(20)]


def test_models_are_watched(served: ServedApi, msm: Run, name: str):
    assert msm("deploy", name, "s3://b/1", "--no-wait").code == 0
    with following(served, "get", "model", name, "-w", "-o", "json") as line:
        assert json.loads(line())["metadata"]["generation"] == 1
        assert msm("deploy", name, "s3://b/2", "--no-wait").code == 0
        seen = json.loads(line())
        while seen["metadata"]["generation"] != 2:
            seen = json.loads(line())
        assert msm("delete", name).code == 0
        while "deleted" not in seen:
            seen = json.loads(line())


def test_the_logs_of_all_workers_are_followed(served: ServedApi):
    logs = [served.node.log_path(worker) for worker in ("w0", "w1")]
    for log in logs:
        with log.open("a") as file:
            file.write(f"begin {log.name}\n")
    with following(served, "logs", "-f", "--lines", "1") as line:
        assert sorted([line(), line()]) == ["w0  begin w0.log\n", "w1  begin w1.log\n"]
        with logs[1].open("a") as file:
            file.write("more\n")
        assert line() == "w1  more\n"
