"""The README's tour, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench._mesh import Mesh
from examples.quickstart.zoo import iris

ROOT = Path(__file__).resolve().parents[2]


def tour() -> list[str]:
    """Every command of the README's blocks marked as tour, in order."""
    blocks = re.findall(r"<!-- tour -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


@pytest.mark.slow
def test_every_command_of_the_tour_works(own_mesh: Mesh, tmp_path: Path):
    (tmp_path / "models").mkdir()
    iris(tmp_path / "models")
    environment = {
        **os.environ,
        "MSM_HOME": str(own_mesh.data),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    assert len(tour()) >= 10
    for command in tour():
        here = command.replace("localhost:8080", own_mesh.gateway.removeprefix("http://"))
        if here.startswith("curl"):
            here = here.replace("curl", "curl -sS --fail-with-body", 1)
        done = subprocess.run(
            ["bash", "-c", here], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_link_of_the_readme_leads_somewhere():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
