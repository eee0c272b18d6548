"""Waiting until versions are valid, with what happens meanwhile on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from msm.cli.common import Failed
from msm.cli.text import one_line, size
from msm.kit.errors import DeadlineExceeded

if TYPE_CHECKING:
    from msm.client import MeshClient
    from msm.resources.meta import ObjectKey
    from msm.resources.wire import VersionProgress

POLL_S = 0.1


class Display(Protocol):
    """Where the present state is shown."""

    def update(self, status: str) -> None: ...


class _Quiet:
    """No terminal: nothing is shown until the end."""

    def update(self, status: str) -> None:
        """Nobody looks."""


def wait_for(client: MeshClient, key: ObjectKey, versions: Sequence[str], *, timeout_s: float) -> None:
    """Return when all `versions` are valid. Raises Failed with the reason when one cannot be loaded, and
    DeadlineExceeded."""
    deadline = time.monotonic() + timeout_s
    with _display() as display:
        while True:
            found = client.progress(key).versions
            states = {name: found[name] for name in versions if name in found}
            display.update("  ".join(_line(name, state) for name, state in states.items()))
            _raise_failures(key, states)
            if len(states) == len(versions) and all(state.phase == "Valid" for state in states.values()):
                return
            if time.monotonic() > deadline:
                waiting = ", ".join(f"{name} is {state.phase.lower()}" for name, state in states.items())
                raise DeadlineExceeded(f"{key} was not ready after {timeout_s:g} seconds: {waiting}")
            time.sleep(POLL_S)


def _raise_failures(key: ObjectKey, states: dict[str, VersionProgress]) -> None:
    failed = {name: state.message or "" for name, state in states.items() if state.phase == "Failed"}
    if failed:
        told = "; ".join(f"version {name} of {key} failed: {message}" for name, message in failed.items())
        raise Failed(told)


def _line(name: str, state: VersionProgress) -> str:
    fetched = f" {size(state.fetched_bytes)}" if state.fetched_bytes is not None else ""
    return one_line(f"{name}: {state.phase.lower()}{fetched}")


def _display() -> AbstractContextManager[Display]:
    if not sys.stderr.isatty():
        return nullcontext(_Quiet())
    from rich.status import Status

    from msm.cli.output import console

    return Status("", console=console(sys.stderr))
