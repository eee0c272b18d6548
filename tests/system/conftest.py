"""A whole mesh on this machine: real node process, real Envoy, real workers, real models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench._mesh import Mesh, mesh
from bench._models import write_network

MSM = str(Path(sys.executable).parent / "msm")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def running() -> Iterator[Mesh]:
    """One mesh for all tests that do not break it; they use names of their own."""
    with mesh("--workers", "2") as started:
        yield started


@pytest.fixture
def own_mesh() -> Iterator[Mesh]:
    """A mesh for one test that kills or stops parts of it."""
    with mesh("--workers", "2") as started:
        yield started


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ONNX network."""
    return write_network(tmp_path_factory.mktemp("models") / "network.onnx", 1)


@pytest.fixture(scope="session")
def other_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one: same shape, other weights."""
    return write_network(tmp_path_factory.mktemp("models") / "other.onnx", 2)


def msm_command(data: Path) -> Callable[..., Ran]:
    """Runs `msm ARGUMENTS` against the mesh of that data directory."""

    def run(*arguments: str, stdin: str | None = None, cwd: Path | None = None) -> Ran:
        environment = {**os.environ, "MSM_HOME": str(data), "NO_COLOR": "1", "COLUMNS": "160"}
        done = subprocess.run(
            [MSM, *arguments], input=stdin, capture_output=True, text=True, env=environment, cwd=cwd, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def msm(running: Mesh) -> Callable[..., Ran]:
    return msm_command(running.data)
