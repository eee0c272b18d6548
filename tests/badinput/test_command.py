"""The command line on bad input (3.8, D16): a sentence, an exit code that means something, never a traceback.

Most run inside this process, since a start of the command costs more than all it does here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msm.cli.main import app
from tests.badinput.cases import CommandCase, read
from tests.badinput.mesh import Subject

CASES = read("command", CommandCase)
MSM = str(Path(sys.executable).parent / "msm")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(data: Path, arguments: list[str], stdin: str | None = None) -> Ran:
    """The command in this process."""
    environment = {"MSM_HOME": str(data), "COLUMNS": "200", "NO_COLOR": "1"}
    done = CliRunner().invoke(app, arguments, input=stdin, env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)


def run_process(data: Path, arguments: list[str]) -> Ran:
    """The command in a process of its own."""
    environment = {**os.environ, "MSM_HOME": str(data), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run([MSM, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=30)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id} {case.title}")
def test_a_bad_command_ends_with_its_code_and_a_sentence(
    case: CommandCase, subject: Subject, artifacts: dict[str, Path], tmp_path: Path
):
    places = {"{network}": str(artifacts["perceptron"]), "{empty}": str(tmp_path)}
    done = run(subject.mesh.data, [places.get(word, word) for word in case.arguments], case.stdin)
    assert done.code in case.codes, f"{done.code}, right is {case.code}: {done.err[:500]}"
    assert re.search(case.error, done.err, re.DOTALL), f"{case.error!r} is not in {done.err!r}"
    assert "Traceback" not in done.err
    assert "\x1b" not in done.out + done.err
    assert len(done.err) < 4000
    subject.is_unchanged()


def test_a_closed_pipe_is_no_error(subject: Subject):
    environment = {**os.environ, "MSM_HOME": str(subject.mesh.data)}
    command = [
        "bash",
        "-c",
        f"set -o pipefail; {MSM} events --output json | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=30)
    assert int(done.stdout) in (0, 141)
    assert done.stderr == ""


def test_a_wrong_token_is_told_by_its_code(subject: Subject, tmp_path: Path):
    (tmp_path / "node.json").write_bytes((subject.mesh.data / "node.json").read_bytes())
    token = tmp_path / "admin.token"
    token.write_text("msm_" + "x" * 43 + "\n")
    token.chmod(0o600)
    done = run_process(tmp_path, ["get", "models"])
    assert done.code == 5, done.err
    assert "token" in done.err
    assert "xxxx" not in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gateway-port", "99999"], "99999"),
        (["--gateway-port", "eight"], "eight"),
        (["--api-port", "-5"], "-5"),
        (["--workers", "0"], "0"),
        (["--workers", "many"], "many"),
        (["--capacity", "12XB"], "12XB"),
        (["--capacity", "-1GiB"], "-1GiB"),
        (["--capacity", "0"], "0"),
        (["--host", "nowhere.invalid"], "nowhere.invalid"),
        (["--host", "203.0.113.1"], "203.0.113.1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_node_does_not_start_with_settings_that_cannot_work(tmp_path: Path, options: list[str], told: str):
    ports = [] if "port" in options[0] else ["--gateway-port", "0", "--api-port", "0"]
    done = (run_process if "--host" in options else run)(tmp_path / "data", ["up", *ports, *options])
    assert done.code != 0
    assert told in done.err, done.err
    assert "Traceback" not in done.err


def test_a_node_does_not_start_where_its_data_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    done = run_process(tmp_path / "file", ["up", "--gateway-port", "0", "--api-port", "0"])
    assert done.code != 0
    assert "Traceback" not in done.err
    assert "file" in done.err
