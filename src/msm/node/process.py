"""One child process on Linux: started in a session of its own, named by pid and start time, watched by a
pidfd.

A pidfd names exactly one process for as long as it is open, so a signal can never reach a stranger that
inherited the number, and its end is seen at once, whether or not the process is a child of this one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

NULL = os.devnull


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it does not exist or is a zombie.

    With the pid it names a process for all time until reboot; unlike a date it is not moved by setting the
    clock.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def oom_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory since boot; 0 when unknown."""
    try:
        counters = Path("/proc/vmstat").read_text("ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith("oom_kill ")), 0)


def spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Start `argv` in a session of its own, its output appended to `log`; returns the pid. Blocks for milliseconds."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, NULL, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )


def python_argv(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def rotate(log: Path, limit: int) -> None:
    """Keep a log below about `limit` bytes and one older file; safe while a process appends to it."""
    try:
        if log.stat().st_size <= limit:
            return
    except FileNotFoundError:
        return
    old = log.with_suffix(".1.log")
    with log.open("rb") as source, old.open("wb") as target:
        source.seek(-limit, os.SEEK_END)
        target.write(source.read(limit))
    os.truncate(log, 0)


class Process:
    """A living process, watched from the running event loop until `release`."""

    def __init__(self, pid: int, ticks: int, pidfd: int) -> None:
        self.pid = pid
        self.ticks = ticks
        self.died = asyncio.Event()
        self.exit_status: int | None = None
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._ended)

    @classmethod
    def open(cls, pid: int, ticks: int | None = None) -> Process | None:
        """Watch a process; None when it is gone, or when `ticks` is given and another process has its number now."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        found = start_ticks(pid)
        if found is None or (ticks is not None and found != ticks):
            os.close(pidfd)
            _reap(pid)
            return None
        return cls(pid, found, pidfd)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _ended(self) -> None:
        with suppress(ChildProcessError):  # not our child: adopted from an earlier node process
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if result is not None:
                killed = result.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
                self.exit_status = -result.si_status if killed else result.si_status
        self.release()
        self.died.set()

    @property
    def ended_how(self) -> str:
        """Its end in words."""
        status = self.exit_status
        if status is None:
            return "it ended"
        if status < 0:
            return f"it was ended by signal {signal.Signals(-status).name}"
        return f"it ended with status {status}"

    def release(self) -> None:
        """Stop watching; the process goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def ended(self, within_s: float) -> bool:
        """Wait for the end; True as soon as it is there."""
        try:
            async with asyncio.timeout(within_s):
                await self.died.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self, patience_s: float) -> None:
        """SIGTERM, then SIGKILL after `patience_s`; returns when it has ended."""
        if self.died.is_set():
            return
        self.signal(signal.SIGTERM)
        if not await self.ended(patience_s):
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL; returns when it has ended."""
        self.signal(signal.SIGKILL)
        await self.died.wait()


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
