"""doctor: what it looks at, and how it ends."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msm.cli.main import app
from msm.resources.wire import TOKEN_FILE
from tests.component.cli.conftest import Run


def look(data_dir: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    done = CliRunner().invoke(app, ["doctor", "--data-dir", str(data_dir), "-o", "json"])
    return done.exit_code, {each["check"]: (each["outcome"], each["message"]) for each in json.loads(done.stdout)}


def test_a_running_mesh_is_found_in_order_but_for_its_broken_worker(msm: Run):
    done = msm("doctor", "-o", "json")
    found = {each["check"]: each["outcome"] for each in json.loads(done.out)}
    assert done.code == 0
    assert (found["mesh"], found["gateway"], found["store"], found["token"], found["envoy"]) == ("ok",) * 5
    assert found["workers"] == "warn"
    assert "1 of 2 are ready" in msm("doctor").out


def test_before_the_first_start_ports_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setenv("MSM_API_PORT", str(taken))
        code, found = look(tmp_path / "nothing" / "there")
    assert code == 0
    assert found["mesh"][0] == "warn"
    assert found[f"port {taken}"][0] == "warn"
    assert found["disk"][0] in ("ok", "warn")


def test_an_open_token_and_directory_fail_with_the_remedy(tmp_path: Path):
    (tmp_path / TOKEN_FILE).write_text("x" * 40)
    (tmp_path / TOKEN_FILE).chmod(0o644)
    tmp_path.chmod(0o777)
    code, found = look(tmp_path)
    assert code == 1
    assert "chmod 600" in found["token"][1]
    assert "chmod go-w" in found["data directory"][1]


def test_a_data_directory_that_is_a_file_fails(tmp_path: Path):
    (tmp_path / "file").touch()
    code, found = look(tmp_path / "file")
    assert (code, found["data directory"][0]) == (1, "fail")
