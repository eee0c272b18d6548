"""External model servers in environments of their own (`make peers`), and how a mesh is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"


def peer(name: str) -> Path:
    """The environment of a server. A test that needs it fails, and says what to do, when it is not there."""
    place = PEERS / name
    if not (place / ".installed").is_file():
        pytest.fail(f"{name} is not installed in .peers/{name}; install it with: make peers", pytrace=False)
    return place


def runtime(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "msm/v1", "kind": "ServingRuntime", "metadata": {"name": name}, "spec": spec}


def mlserver(name: str = "mlserver", **more: Any) -> dict[str, Any]:
    """MLServer, models in its own process."""
    place = peer("mlserver")
    spec = {
        "adapter": "mlserver",
        "command": [str(place / "bin/mlserver"), "start", "{repository}"],
        "formats": ["sklearn", "custom"],
        "env": {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{http_port}",
            "MLSERVER_GRPC_PORT": "{grpc_port}",
            "MLSERVER_METRICS_PORT": "{metrics_port}",
            "MLSERVER_PARALLEL_WORKERS": "0",
        },
        "memoryOverhead": "200Mi",
        **more,
    }
    return runtime(name, **spec)


def triton(name: str = "triton", **more: Any) -> dict[str, Any]:
    """The Triton of the PyPI wheel, which has the Python backend only."""
    place = peer("triton")
    (libraries,) = place.glob("lib/python3*/site-packages/nvidia_pytriton.libs")
    spec = {
        "adapter": "triton",
        "command": [
            str(place / "bin/tritonserver"),
            "--model-repository={repository}",
            "--model-control-mode=explicit",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--http-port={http_port}",
            "--grpc-port={grpc_port}",
            "--allow-metrics=false",
            f"--backend-directory={place / 'backends'}",
        ],
        "formats": ["onnx"],
        "env": {"PATH": f"{place / 'bin'}:/usr/bin:/bin", "LD_LIBRARY_PATH": str(libraries)},
        "memoryOverhead": "150Mi",
        **more,
    }
    return runtime(name, **spec)


def model(name: str, uri: Path, runtime: str | None = None, **version: Any) -> dict[str, Any]:
    """A model of one version v1."""
    spec = {"name": "v1", "uri": uri.as_uri(), **version}
    if runtime is not None:
        spec["runtime"] = runtime
    return {"apiVersion": "msm/v1", "kind": "Model", "metadata": {"name": name}, "spec": {"versions": [spec]}}


def write_sklearn(path: Path) -> Path:
    """A logistic regression on iris, pickled by joblib."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, classes = load_iris(return_X_y=True)
    joblib.dump(LogisticRegression(max_iter=500).fit(features, classes), path)
    return path


CUSTOM = """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Scaled(MLModel):
    async def load(self) -> bool:
        self._factor = self.settings.parameters.extra["factor"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values = NumpyCodec.decode_input(payload.inputs[0])
        answer = NumpyCodec.encode_output("scaled", values * self._factor)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[answer])
"""


def write_custom(folder: Path) -> Path:
    """A model of MLServer as its users write one: a subclass of MLModel and its settings."""
    folder.mkdir()
    (folder / "scaled.py").write_text(CUSTOM)
    settings = {"name": "mine", "implementation": "scaled.Scaled", "parameters": {"extra": {"factor": 3.0}}}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    return folder
