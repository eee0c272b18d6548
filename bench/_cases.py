"""The workloads that servers are compared by: small networks, a classifier, an image; over each protocol.

Every server gets the same bytes: Open Inference Protocol v2 with the same names of models and tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench._h2load import Ask
from bench._models import write_identity, write_network
from msm.runtime.protocols import oip_grpc
from msm.runtime.protocols import oip_pb2 as pb

TINY, IRIS, IMAGE = "tiny", "iris", "image"
LAYERS = (4, 64, 64, 3)
ROW = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
IMAGE_SHAPE = (3, 224, 224)
INFER_GRPC = "/inference.GRPCInferenceService/ModelInfer"
# What our own servers load: only the class is asked for, as it is of the others.
FORMATS: dict[str, dict[str, Any]] = {
    TINY: {"format": "onnx"},
    IRIS: {"format": "sklearn", "parameters": {"outputs": ["predict"]}},
    IMAGE: {"format": "onnx"},
}
JSON = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Case:
    """A workload: what is asked of which model, by how many at once. `name` is what its figures are called."""

    name: str
    model: str
    ask: Ask
    callers: int = 32

    def on_worker(self) -> Case:
        """The same as the worker gets it from Envoy: gRPC in HTTP/1.1, and the version in a header."""
        target = ("x-msm-target", f"default/{self.model}/v1")
        return replace(self, ask=replace(self.ask, http2=False, headers=(*self.ask.headers, target)))


def write_models(folder: Path) -> dict[str, Path]:
    """The artifacts: ONNX files, and the classifier as skops (`iris`) and joblib (`iris.joblib`)."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        TINY: write_network(folder / "tiny.onnx", 7, LAYERS),
        IMAGE: write_identity(folder / "image.onnx", IMAGE_SHAPE),
        IRIS: store(fit_iris(), folder / "iris.skops"),
        f"{IRIS}.joblib": store(fit_iris(), folder / "iris.joblib"),
    }


def fit_iris() -> Any:
    """A logistic regression of the iris data."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, kinds = load_iris(return_X_y=True)
    return LogisticRegression(max_iter=200).fit(features, kinds)


def store(fitted: Any, path: Path) -> Path:
    """Store an estimator as the file's name says: by skops or by joblib."""
    import joblib
    import skops.io

    (skops.io.dump if path.suffix == ".skops" else joblib.dump)(fitted, path)
    return path


def cases(folder: Path) -> list[Case]:
    """All workloads; their bodies are written below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(7).random((1, *IMAGE_SHAPE), np.float32)
    return [
        Case("tiny ONNX network, REST JSON", TINY, _rest(folder, TINY, "x", ROW)),
        Case("tiny ONNX network, gRPC", TINY, _grpc(folder, TINY, "x", ROW)),
        Case("logistic regression, REST JSON", IRIS, _rest(folder, IRIS, "input-0", ROW)),
        Case("1x3x224x224 identity, REST JSON", IMAGE, _rest(folder, IMAGE, "x", image), 4),
        Case("1x3x224x224 identity, REST binary", IMAGE, _binary(folder, IMAGE, "x", image), 4),
        Case("1x3x224x224 identity, gRPC", IMAGE, _grpc(folder, IMAGE, "x", image), 4),
    ]


def _input(name: str, array: np.ndarray) -> dict[str, object]:
    return {"name": name, "shape": list(array.shape), "datatype": "FP32"}


def _rest(folder: Path, model: str, name: str, array: np.ndarray) -> Ask:
    body = {"inputs": [{**_input(name, array), "data": array.ravel().tolist()}]}
    path = folder / f"{model}.json"
    path.write_text(json.dumps(body))
    return Ask(f"/v2/models/{model}/infer", path, JSON)


def _binary(folder: Path, model: str, name: str, array: np.ndarray) -> Ask:
    tensor = {**_input(name, array), "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    path = folder / f"{model}.binary"
    path.write_bytes(head + array.tobytes())
    length = ("inference-header-content-length", str(len(head)))
    return Ask(f"/v2/models/{model}/infer", path, (("content-type", "application/octet-stream"), length))


def _grpc(folder: Path, model: str, name: str, array: np.ndarray) -> Ask:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name=name, datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    path = folder / f"{model}.grpc"
    path.write_bytes(oip_grpc.frame(message.SerializeToString()))
    return Ask(INFER_GRPC, path, (("content-type", "application/grpc"), ("te", "trailers")), http2=True)
