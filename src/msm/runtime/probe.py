"""One probe: fork, limit, wait, judge. Runs in the probation process, which must have a single thread."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import orjson

from msm.kit.errors import MsmError
from msm.runtime.acceleration.work import AccelerateSpec
from msm.runtime.formats.base import first_line
from msm.runtime.measure import ProbeSpec

log = logging.getLogger(__name__)

_STAGE_BYTES: Final = 16
_POLL_S: Final = 0.05
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG: Final = 1
# Beyond two copies of the model a child needs room for libraries it imports and for buffers while it loads.
_RESIDENT_SLACK: Final = 256 * 1024 * 1024
_ADDRESS_SLACK: Final = 1024 * 1024 * 1024


# What a child does: told each stage it enters, it returns a struct.
Spec = ProbeSpec | AccelerateSpec
Work = Callable[[Callable[[str], None]], msgspec.Struct]


class ProbeFailed(Exception):
    """A version that may not be served: its load failed, crashed, hung or took too much memory."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    pidfd: int
    report: int  # memory file: the stage in the first 16 bytes, then the result as JSON


async def probe(spec: Spec, work: Work) -> dict[str, Any]:
    """What `work` gives in a child within the limits of `spec`, as plain values.

    Raises ProbeFailed. Whatever happens, the child and its own children are gone afterwards.
    """
    child = _fork(spec, work)
    try:
        why = await _wait(child, spec)
    finally:
        status = _end(child)
    try:
        return _judge(child, status, why, spec)
    finally:
        os.close(child.report)


def _fork(spec: Spec, work: Work) -> _Child:
    report = os.memfd_create("probe")
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run_child(spec, work, report, parent)
    return _Child(pid, os.pidfd_open(pid), report)


async def _wait(child: _Child, spec: Spec) -> str | None:
    """Wait for the end of the child; returns why it must be ended before, if so."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(child.pidfd, ended.set)
    try:
        deadline = loop.time() + spec.timeout_s
        base = _resident(os.getpid())
        while loop.time() < deadline:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_POLL_S, spec.timeout_s)):
                    await ended.wait()
                return None
            limit = spec.memory_limit_bytes
            if limit is not None and _resident(child.pid) - base > 2 * limit + _RESIDENT_SLACK:
                return "memory"
        return "timeout"
    finally:
        loop.remove_reader(child.pidfd)


def _end(child: _Child) -> int:
    """Kill what is left of the child's process group and take its exit status."""
    for kill in (os.killpg, os.kill):  # the group exists only after the child's first step
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child.pid, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    return status


def _judge(child: _Child, status: int, why: str | None, spec: Spec) -> dict[str, Any]:
    """The child's result, or the error that its end means."""
    data = os.pread(child.report, os.fstat(child.report).st_size, 0)
    stage = data[:_STAGE_BYTES].rstrip(b"\0").decode() or "starting"
    if why == "timeout":
        raise ProbeFailed(f"the model was still {stage} after {spec.timeout_s:g} s", "timeout")
    if why == "memory":
        raise ProbeFailed(
            f"the model takes more memory than the limit of {spec.memory_limit_bytes} bytes", "memory_limit"
        )
    if len(data) > _STAGE_BYTES and os.WIFEXITED(status):
        result: dict[str, Any] = orjson.loads(data[_STAGE_BYTES:])
        if "error" in result:
            raise ProbeFailed(result["error"], result["reason"])
        return result
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise ProbeFailed(f"the model crashed while {stage} ({name})", "crashed")
    raise ProbeFailed(f"the model ended its process while {stage} (exit code {os.WEXITSTATUS(status)})", "crashed")


def _too_large(spec: Spec) -> ProbeFailed:
    limit = spec.memory_limit_bytes
    what = "there is" if limit is None else f"the limit of {limit} bytes"
    return ProbeFailed(f"the model takes more memory than {what}", "memory_limit")


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):  # it has just ended
        return 0


def _run_child(spec: Spec, work: Work, report: int, parent: int) -> NoReturn:
    """Everything the child does. Never returns into the code of the process it was forked from."""
    code = 1
    try:
        _isolate(report, parent)
        _limit(spec)
        answer = _measured(spec, work, report)
        os.pwrite(report, answer, _STAGE_BYTES)
        code = 0
    finally:
        os._exit(code)


def _measured(spec: Spec, work: Work, report: int) -> bytes:
    def enter(stage: str) -> None:
        os.pwrite(report, stage.encode().ljust(_STAGE_BYTES, b"\0"), 0)

    try:
        return msgspec.json.encode(work(enter))
    except MsmError as error:
        log.info("the version was refused", extra={"reason": error.reason}, exc_info=error.__cause__)
        return orjson.dumps({"error": error.message, "reason": error.reason})
    except MemoryError:
        problem = _too_large(spec)
        return orjson.dumps({"error": problem.message, "reason": problem.reason})
    except BaseException as error:
        log.info("the version failed", exc_info=True)
        return orjson.dumps({"error": f"the model failed: {first_line(error)}", "reason": "load_failed"})


def _isolate(report: int, parent: int) -> None:
    """Leave the parent's signals, sockets and terminal; die with the parent; be the first to go when memory ends."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(2, 1)
    os.closerange(3, report)
    os.closerange(report + 1, os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit(spec: Spec) -> None:
    if spec.memory_limit_bytes is None:
        return
    mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * _PAGE
    most = mapped + 2 * spec.memory_limit_bytes + _ADDRESS_SLACK
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
