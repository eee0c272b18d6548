"""How commands end: exit codes, sentences instead of tracebacks, closed pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from msm import __version__
from msm.cli.common import exit_code
from msm.cli.main import app
from msm.kit import errors
from msm.resources.wire import NODE_FILE, TOKEN_FILE, NodeFile
from tests.component.cli.conftest import Run
from tests.support.served_api import ServedApi

MSM = str(Path(sys.executable).parent / "msm")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x"), 1), (errors.NotFound("x"), 3), (errors.Conflict("x"), 4),
        (errors.Unauthenticated("x"), 5), (errors.Forbidden("x"), 5), (errors.Unavailable("x"), 6),
        (errors.DeadlineExceeded("x"), 6), (errors.LoadFailed("x"), 1), (errors.Internal("x"), 1),
    ],
)  # fmt: skip
def test_every_error_has_its_exit_code(error: errors.MsmError, code: int):
    assert exit_code(error) == code


def test_without_a_mesh_the_way_to_one_is_told(tmp_path: Path):
    done = CliRunner().invoke(app, ["get", "--data-dir", str(tmp_path)])
    assert done.exit_code == 6
    assert done.stderr == f"error: no mesh runs on data directory {tmp_path}; start one with: msm up\n"


def test_a_mesh_that_is_gone_is_told_the_same(tmp_path: Path):
    node = NodeFile(api="http://127.0.0.1:1", gateway="http://127.0.0.1:1", pid=1)
    (tmp_path / NODE_FILE).write_bytes(msgspec.json.encode(node))
    (tmp_path / TOKEN_FILE).write_text("x" * 40)
    done = CliRunner().invoke(app, ["get", "--data-dir", str(tmp_path)])
    assert done.exit_code == 6
    assert "msm up" in done.stderr


def test_a_wrong_token_is_not_allowed(served: ServedApi, tmp_path: Path):
    (tmp_path / NODE_FILE).write_bytes((served.data_dir / NODE_FILE).read_bytes())
    (tmp_path / TOKEN_FILE).write_text("msm_" + "x" * 40)
    done = CliRunner().invoke(app, ["get", "--data-dir", str(tmp_path)])
    assert done.exit_code == 5


@pytest.mark.parametrize("arguments", [["get", "--nope"], ["nope"], ["deploy"], ["get", "-o", "xml"], ["apply"]])
def test_wrong_usage_is_told_with_two(msm: Run, arguments: list[str]):
    done = msm(*arguments)
    assert done.code == 2
    assert "Usage" in done.err


def test_a_missing_file_is_a_sentence(msm: Run):
    done = msm("apply", "-f", "no/such/file.yaml")
    assert (done.code, done.err) == (1, "error: No such file or directory: no/such/file.yaml\n")


def test_the_version_is_printed(msm: Run):
    assert msm("--version").out == f"{__version__}\n"


def test_every_command_explains_itself(msm: Run):
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(commands) == 17
    for command in commands:
        done = msm(command, "--help")
        assert done.code == 0
        assert "Usage" in done.out


def test_a_closed_pipe_ends_quietly(served: ServedApi):
    environment = {**os.environ, "MSM_HOME": str(served.data_dir)}
    done = subprocess.run(
        ["bash", "-c", f"{MSM} get -o json | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")  # 0: it had written all before the pipe was closed


def test_starting_imports_nothing_heavy():
    heavy = ("httpx", "rich", "yaml", "uvicorn", "starlette", "apsw", "numpy", "grpc")
    code = f"import sys, msm.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
