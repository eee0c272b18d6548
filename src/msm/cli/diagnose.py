"""`msm doctor`: looks at everything a mesh needs and says what is wrong with it, and how to mend it."""

from __future__ import annotations

import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from msm.cli.common import DataDir, Form
from msm.cli.output import Output, dump, mood, show, table
from msm.cli.text import size
from msm.kit.errors import MsmError

if TYPE_CHECKING:
    from msm.settings import Settings

LOW_DISK = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    outcome: Literal["ok", "warn", "fail"]
    message: str


def doctor(data_dir: DataDir = None, output: Form = Output.TABLE) -> None:
    """Check the installation and the running mesh.

    The exit code is 1 when something is broken.
    """
    from msm.settings import load_settings

    found = list(examine(load_settings({"data_dir": data_dir})))
    if output is Output.TABLE:
        show(table(["CHECK", "OUTCOME", "FOUND"], [(each.check, mood(each.outcome), each.message) for each in found]))
    else:
        dump(found, output)
    if any(each.outcome == "fail" for each in found):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, one after the other; those of a running mesh only when one runs."""
    yield _python()
    yield _envoy()
    yield from _formats()
    yield _directory(settings.data_dir)
    yield _token(settings.data_dir)
    yield _disk(settings.data_dir)
    yield from _mesh(settings)


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < (3, 11) or sys.platform != "linux":
        return Finding(check="python", outcome="fail", message=f"{version} on {sys.platform}; 3.11 on Linux is needed")
    return Finding(check="python", outcome="ok", message=version)


def _envoy() -> Finding:
    from msm.gateway.envoy import binary_version, find_binary

    return _checked("envoy", lambda: f"{binary_version()}, {size(find_binary().stat().st_size)}")


def _checked(check: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, outcome="ok", message=work())
    except MsmError as error:
        return Finding(check=check, outcome="fail", message=error.message)


def _formats() -> Iterator[Finding]:
    from importlib.util import find_spec

    needs = {"onnx": "onnxruntime", "sklearn": "skops", "xgboost": "xgboost", "lightgbm": "lightgbm"}
    missing = [name for name, module in needs.items() if find_spec(module) is None]
    there = [name for name in needs if name not in missing]
    message = f"{', '.join([*there, 'python'])} can be served"
    if missing:
        extras = ",".join(missing)
        message += f"; for {', '.join(missing)}: pip install 'model-service-mesh[{extras}]'"
    yield Finding(check="formats", outcome="warn" if missing else "ok", message=message)


def _directory(path: Path) -> Finding:
    check = "data directory"
    if not path.exists():
        return Finding(check=check, outcome="ok", message=f"{path} will be made by the first start")
    state = path.stat()
    if not path.is_dir():
        return Finding(check=check, outcome="fail", message=f"{path} is not a directory")
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        message = f"other users may write to {path}; mend it with: chmod go-w '{path}'"
        return Finding(check=check, outcome="fail", message=message)
    return Finding(check=check, outcome="ok", message=str(path))


def _token(path: Path) -> Finding:
    from msm.api.auth import read_token
    from msm.resources.wire import TOKEN_FILE

    if not (path / TOKEN_FILE).exists():
        return Finding(check="token", outcome="ok", message="will be written by the first start")

    def look() -> str:
        read_token(path / TOKEN_FILE)
        return "private"

    return _checked("token", look)


def _disk(path: Path) -> Finding:
    place = next(each for each in (path, *path.parents) if each.exists())
    free = shutil.disk_usage(place).free
    low = free < LOW_DISK
    advice = "; artifacts will not fit" if low else ""
    return Finding(check="disk", outcome="warn" if low else "ok", message=f"{size(free)} free{advice}")


def _mesh(settings: Settings) -> Iterator[Finding]:
    from msm.client import MeshClient

    try:
        with MeshClient.of(settings.data_dir, timeout_s=5) as client:
            status = client.node()
            models = client.models()
    except MsmError as error:
        running = error.reason != "not_running"
        yield Finding(check="mesh", outcome="fail" if running else "warn", message=error.message)
        if not running:
            yield from (_port(settings.host, port) for port in (settings.gateway_port, settings.api_port) if port)
        return
    yield Finding(check="mesh", outcome="ok", message=f"node {status.name} answers, version {status.version}")
    connected = status.gateway.connected
    yield Finding(
        check="gateway",
        outcome="ok" if connected else "fail",
        message=f"{status.gateway.address}, Envoy {'follows' if connected else 'does not follow'} the node",
    )
    ready = sum(worker.state == "Ready" for worker in status.workers)
    yield Finding(
        check="workers",
        outcome="ok" if ready == len(status.workers) else "warn" if ready else "fail",
        message=f"{ready} of {len(status.workers)} are ready",
    )
    yield Finding(check="store", outcome="ok", message=f"{len(models.items)} models at revision {models.revision}")


def _port(host: str, port: int) -> Finding:
    check = f"port {port}"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(1)
        taken = probe.connect_ex((host, port)) == 0
    if taken:
        message = f"something else listens on {host} port {port}; choose another port, or end it"
        return Finding(check=check, outcome="warn", message=message)
    return Finding(check=check, outcome="ok", message="free")
