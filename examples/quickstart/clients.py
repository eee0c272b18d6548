"""Three ways to ask a model over the Open Inference Protocol, none of them ours: curl, tritonclient HTTP and gRPC."""

from __future__ import annotations

import json
import subprocess
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import np_to_triton_dtype

from examples.quickstart.zoo import Case

JSON = {"content-type": "application/json"}
Answer = dict[str, np.ndarray]


def oip_body(case: Case) -> str:
    """The request as JSON, as a person would write it."""
    return json.dumps({"inputs": [_json_tensor(name, array) for name, array in case.inputs.items()]})


def _json_tensor(name: str, array: np.ndarray) -> dict[str, Any]:
    flat = array.reshape(-1)
    data = [item.decode() for item in flat] if array.dtype == object else flat.tolist()
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": np_to_triton_dtype(array.dtype),
        "data": data,
    }


def from_json(body: dict[str, Any]) -> Answer:
    """Named arrays from an OIP answer."""
    return {out["name"]: np.array(out["data"]).reshape(out["shape"]) for out in body["outputs"]}


def by_curl(gateway: str, case: Case) -> Answer:
    """`curl GATEWAY/v2/models/NAME/infer -d BODY`"""
    url = f"{gateway}/v2/models/{case.name}/infer"
    command = ["curl", "-sS", "--fail-with-body", "-H", "content-type: application/json", "-d", "@-", url]
    done = subprocess.run(command, input=oip_body(case), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"curl {url} failed: {done.stderr}{done.stdout}")
    return from_json(json.loads(done.stdout))


def _triton(library: Any, address: str, case: Case) -> Answer:
    with library.InferenceServerClient(address) as client:
        inputs = []
        for name, array in case.inputs.items():
            tensor = library.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        result = client.infer(case.name, inputs)
        return {case.output: result.as_numpy(case.output)}


def by_triton_http(gateway: str, case: Case) -> Answer:
    """tritonclient over HTTP, tensors in binary."""
    return _triton(triton_http, urlsplit(gateway).netloc, case)


def by_triton_grpc(gateway: str, case: Case) -> Answer:
    """tritonclient over gRPC."""
    return _triton(triton_grpc, urlsplit(gateway).netloc, case)


def summary(case: Case, answer: Answer) -> str:
    """The answer in a few words."""
    values = answer[case.output].reshape(-1)
    if case.labels:
        return case.labels[int(np.argmax(values))]
    return ", ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values[:3].tolist())
