"""An ONNX network as a model of Triton's Python backend: copied into a model's folder and run by Triton.

It imports nothing but what the environment of that Triton has: numpy and onnxruntime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend

_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


def _session() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = Path(__file__).absolute().with_name("model.onnx")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _tensor(info: Any) -> dict[str, Any]:
    dims = [size if isinstance(size, int) else -1 for size in info.shape]
    return {"name": info.name, "data_type": _TYPES[info.type], "dims": dims}


class TritonPythonModel:
    """One network. Inputs and outputs are read from the network itself, the first dimension included."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        session = _session()
        config.set_max_batch_size(0)
        for info in session.get_inputs():
            config.add_input(_tensor(info))
        for info in session.get_outputs():
            config.add_output(_tensor(info))
        return config

    def initialize(self, args: dict[str, str]) -> None:
        self._session = _session()
        self._outputs = [info.name for info in self._session.get_outputs()]
        self._strings = {info.name for info in self._session.get_inputs() if info.type == "tensor(string)"}

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            values = {tensor.name(): self._value(tensor) for tensor in request.inputs()}
            wanted = [name for name in self._outputs if name in set(request.requested_output_names())]
            found = self._session.run(wanted, values)
        except Exception as error:  # told to the caller; one bad request must not fail its neighbours
            return backend.InferenceResponse(error=backend.TritonError(f"{type(error).__name__}: {error}"))
        made = [np.asarray(value, np.object_) if np.asarray(value).dtype.kind in "UO" else value for value in found]
        return backend.InferenceResponse([backend.Tensor(*pair) for pair in zip(wanted, made, strict=True)])

    def _value(self, tensor: Any) -> Any:
        value = tensor.as_numpy()
        if tensor.name() not in self._strings:
            return value
        texts = [item.decode() if isinstance(item, bytes) else item for item in value.ravel()]
        return np.array(texts, np.object_).reshape(value.shape)
