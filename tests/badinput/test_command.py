"""The command line on bad input (3.8, D16): a sentence, an exit code that means something, never a traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.badinput.cases import CommandCase, read
from tests.badinput.mesh import Subject

CASES = read("command", CommandCase)
MSM = str(Path(sys.executable).parent / "msm")


def run(subject: Subject, arguments: list[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MSM_HOME": str(subject.mesh.data), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [MSM, *arguments], input=stdin, capture_output=True, text=True, env=environment, check=False, timeout=30
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id} {case.title}")
def test_a_bad_command_ends_with_its_code_and_a_sentence(
    case: CommandCase, subject: Subject, artifacts: dict[str, Path], tmp_path: Path
):
    places = {"{network}": str(artifacts["perceptron"]), "{empty}": str(tmp_path)}
    done = run(subject, [places.get(word, word) for word in case.arguments], case.stdin)
    assert done.returncode in case.codes, f"{done.returncode}, right is {case.code}: {done.stderr[:500]}"
    assert re.search(case.error, done.stderr, re.DOTALL), f"{case.error!r} is not in {done.stderr!r}"
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert len(done.stderr) < 4000
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
    done = run(subject, ["get", "models", "--data-dir", str(tmp_path)])
    assert done.returncode == 5, done.stderr
    assert "token" in done.stderr
    assert "xxxx" not in done.stderr


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
def test_a_node_does_not_start_with_settings_that_cannot_work(
    subject: Subject, tmp_path: Path, options: list[str], told: str
):
    ports = [] if "port" in options[0] else ["--gateway-port", "0", "--api-port", "0"]
    done = run(subject, ["up", "--data-dir", str(tmp_path / "data"), *ports, *options])
    assert done.returncode != 0
    assert told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_does_not_start_where_its_data_cannot_be(subject: Subject, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    done = run(subject, ["up", "--data-dir", str(tmp_path / "file"), "--gateway-port", "0", "--api-port", "0"])
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "file" in done.stderr
