import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_quickstart_shows_every_model_answering_right_over_every_client(tmp_path: Path):
    command = [sys.executable, "-m", "examples.quickstart", "--exit", "--home", str(tmp_path)]
    command += ["--gateway-port", "0", "--api-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    for model in ("iris", "breast-cancer", "digits", "readability", "file-type"):
        line = next(line for line in done.stdout.splitlines() if model in line and "right" in line)
        assert line.count("right") == 4, line
        assert "v1 in w" in line
