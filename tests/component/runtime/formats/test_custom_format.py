"""A third party's format: its package is built, installed beside, and a worker process finds and serves it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.workers import running_worker, tensor

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "examples" / "custom_format"
UV = Path(sys.executable).parent / "uv"

# An entry point that breaks when it is imported, and one that takes the name of a format of ours.
ILL = {
    "ill/msm_ill.py": "raise RuntimeError('broken on purpose')\n",
    "ill/msm_ill-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: msm-ill\nVersion: 1.0\n",
    "ill/msm_ill-1.0.dist-info/entry_points.txt": "[msm.formats]\nill = msm_ill:Ill\nonnx = msm_ill:Onnx\n",
}


def _uv(*arguments: str) -> None:
    ended = subprocess.run([str(UV), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, built into a wheel and installed from that."""
    folder = tmp_path_factory.mktemp("custom")
    shutil.copytree(EXAMPLE, folder / "source")
    python = ["--python", sys.executable]
    _uv(
        "build",
        "--wheel",
        "--no-build-isolation",
        "--offline",
        *python,
        "--out-dir",
        str(folder),
        str(folder / "source"),
    )
    (wheel,) = folder.glob("*.whl")
    _uv("pip", "install", "--offline", "--no-deps", *python, "--target", str(folder / "site"), str(wheel))
    return folder / "site"


def _search(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(folder) for folder in folders))


def test_a_worker_finds_and_serves_it(installed: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _search(monkeypatch, installed)
    with running_worker(short_folder) as worker:
        loaded = worker.load("default/credit/v1", EXAMPLE / "credit.toml").json()
        assert loaded["format"] == "scorecard"
        inputs = [tensor("income", "FP64", [3], [18000, 60000, 20000]), tensor("age", "INT32", [3], [40, 22, 25])]
        answer = worker.infer("default/credit/v1", *inputs).json()
        outputs = {item["name"]: item["data"] for item in answer["outputs"]}
        assert outputs == {"score": [480.0, 510.0, 510.0], "points": [-30.0, 10.0, 25.0, -15.0, 0.0, 10.0]}
        (short_folder / "bad.toml").write_text('kind = "scorecard"\nbase = 1\n[[characteristics]]\nname = "x"\n')
        refused = worker.load("default/bad/v1", short_folder / "bad.toml")
        assert (refused.status, refused.json()["reason"]) == (503, "corrupt_artifact")


def test_without_the_package_the_artifact_is_of_no_format(short_folder: Path) -> None:
    with running_worker(short_folder) as worker:
        refused = worker.load("default/credit/v1", EXAMPLE / "credit.toml")
        assert (refused.status, refused.json()["reason"]) == (415, "unknown_format")


def test_a_package_that_is_broken_harms_no_other(
    installed: Path, short_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in ILL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    _search(monkeypatch, installed, tmp_path / "ill")
    with running_worker(short_folder) as worker:
        assert worker.load("default/credit/v1", EXAMPLE / "credit.toml").status == 200
        (short_folder / "m.onnx").write_bytes(b"\x08\x08nothing")
        refused = worker.load("default/net/v1", short_folder / "m.onnx", format="onnx")
        assert refused.json()["reason"] == "wrong_format"  # said by our format of that name
        assert "a format cannot be used" in worker.log
