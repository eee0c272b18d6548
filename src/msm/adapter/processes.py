"""An external server's process: started without a shell, ended with the adapter, measured with its children."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msm.adapter.spec import ServerSpec

log = logging.getLogger(__name__)

STOP_S: Final = 4.0
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with its placeholders replaced; what is not a known placeholder stays."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def argv_and_env(spec: ServerSpec, values: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command and all of its environment: a server sees no variable of ours by accident."""
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    env |= {name: fill(value, values) for name, value in spec.env.items()}
    return [fill(argument, values) for argument in spec.command], env


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class ServerProcess:
    """A running server, leader of a session of its own. Its output goes where the adapter's goes."""

    def __init__(self, process: asyncio.subprocess.Process, ports: Mapping[str, int], record: Path) -> None:
        self._process = process
        self._record = record
        self.ports = ports
        self.ended = asyncio.get_running_loop().create_task(process.wait(), name=f"server {process.pid}")

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], ports: Mapping[str, int], record: Path
    ) -> ServerProcess:
        """Start it. Raises OSError when the program cannot be run. `record` is the file that remembers it."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            env=dict(env),
            cwd=record.parent,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # the only way to a signal at the end of the parent; it calls nothing else
        )
        _write(record, str(process.pid))
        return cls(process, ports, record)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def ended_how(self) -> str:
        status = self.returncode
        if status is not None and status < 0:
            return f"was ended by signal {signal.Signals(-status).name}"
        return f"ended with status {status}"

    async def stop(self, patience_s: float = STOP_S) -> None:
        """SIGTERM, then SIGKILL for it and all it started; returns when it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await asyncio.wait([self.ended], timeout=patience_s)
        self.kill()
        await asyncio.wait([self.ended])
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL for it and all it started."""
        kill_session(self.pid)

    def memory_bytes(self) -> int:
        """Memory of the server and its children. Blocks for milliseconds."""
        return sum(_pss(pid) for pid in members(self.pid))


def _write(record: Path, text: str) -> None:
    """A few bytes, on the loop: no server may run that no record names."""
    record.write_text(text)


def members(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
    return found


def kill_session(session: int) -> None:
    """SIGKILL every process of a session that this adapter, or an earlier one in its place, began.

    The kernel gives the number to nobody else while a member lives, so that no stranger is hit.
    """
    for pid in members(session):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def end_leftovers(work: Path) -> None:
    """End what servers of an earlier adapter left running. Their leaders died with it, so a living leader with a
    recorded number is somebody else's."""
    for record in work.glob("*.pid"):
        with suppress(ValueError, OSError):
            session = int(record.read_text())
            if not Path(f"/proc/{session}").exists():
                kill_session(session)
        record.unlink(missing_ok=True)


def _pss(pid: int) -> int:
    """The memory of one process, shared pages counted by share; its resident set where that cannot be read."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
