"""Child processes are named exactly, watched, and never confused with strangers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from msm.node.blackbox import executing
from msm.node.process import Process, rotate, spawn, start_ticks
from msm.node.worker_records import WorkerRecord, read_records, write_records


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Process]:
    pid = spawn([sys.executable, "-S", "-c", "import time; time.sleep(60)"], tmp_path / "log", os.environ)
    process = Process.open(pid)
    assert process is not None
    yield process
    await process.kill()


async def test_an_end_is_seen_at_once_with_its_manner(child: Process):
    assert not await child.ended(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert await child.ended(2.0)
    assert child.ended_how == "it was ended by signal SIGKILL"
    assert start_ticks(child.pid) is None
    child.signal(signal.SIGTERM)  # nobody there: nothing happens


async def test_a_stop_is_asked_for_before_it_is_forced(child: Process):
    await child.stop(5.0)
    assert child.exit_status == -signal.SIGTERM


async def test_a_process_lives_in_its_own_session(child: Process):
    assert os.getsid(child.pid) == child.pid


async def test_a_number_that_belongs_to_another_process_now_is_not_taken(child: Process):
    assert Process.open(child.pid, child.ticks + 1) is None
    assert Process.open(2**22 - 7) is None


async def test_an_exit_status_is_told(tmp_path: Path):
    pid = spawn([sys.executable, "-S", "-c", "print('hello'); raise SystemExit(3)"], tmp_path / "log", os.environ)
    process = Process.open(pid)
    if process is not None:
        assert await process.ended(5.0)
        assert process.ended_how == "it ended with status 3"
    assert (tmp_path / "log").read_text() == "hello\n"


def test_a_log_is_rotated_past_its_limit(tmp_path: Path):
    log = tmp_path / "w0.log"
    rotate(log, 10)
    log.write_bytes(b"0123456789")
    rotate(log, 10)
    assert log.read_bytes() == b"0123456789"
    log.write_bytes(b"0123456789abc")
    rotate(log, 10)
    assert log.read_bytes() == b""
    assert (tmp_path / "w0.1.log").read_bytes() == b"3456789abc"


def test_records_survive_and_damage_is_no_harm(tmp_path: Path):
    path = tmp_path / "workers.json"
    assert read_records(path) == ()
    records = (WorkerRecord("w0", 12, 34), WorkerRecord("d0", 56, 78, "default/a/v1"))
    write_records(path, records)
    assert read_records(path) == records
    path.write_bytes(b'[{"id": "w0"')
    assert read_records(path) == ()


def test_a_black_box_names_what_was_executing(tmp_path: Path):
    box = tmp_path / "w0.box"
    assert executing(box) == ()
    slots = [b""] * 64
    slots[3], slots[63] = b"default/a/v1", b"default/b/v2"
    box.write_bytes(b"".join(slot.ljust(256, b"\0") for slot in slots))
    assert executing(box) == ("default/a/v1", "default/b/v2")
