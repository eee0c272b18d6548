"""ONNX models, run by onnxruntime on the CPU.

One session for each version, with one thread of computation and without a memory arena: a worker holds many models, and
parallelism comes from having several workers. The signature is that of the graph; a dimension with a name may vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from msm.kit.errors import InvalidInput, LoadFailed
from msm.runtime.formats import onnx_file
from msm.runtime.formats.base import Array, LoadOptions, files, loose_files, missing_library, single
from msm.runtime.signature import Datatype, Signature, Tensor

_TYPES: Final[dict[str, Datatype]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_IDENTITY: Final = (  # the graph y = x of one FP32
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01'
    b"\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
# What converters of classifiers give for probabilities: a list of mappings from class to probability.
_PROBABILITY_MAPS: Final = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")


class OnnxModel:
    """A session and the tensors of its graph."""

    accepts: frozenset[str] = frozenset()
    may_block = False

    def __init__(self, session: Any, signature: Signature, *, exact_outputs: bool) -> None:
        self.signature = signature
        self.exact_outputs = exact_outputs
        self._session = session
        self._names = [tensor.name for tensor in signature.outputs]
        self._text = [tensor.name for tensor in signature.inputs if tensor.datatype == "BYTES"]

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run the graph."""
        if self._text:
            inputs = inputs | {name: _as_text(name, inputs[name]) for name in self._text if name in inputs}
        results = self._session.run(self._names, inputs)
        return {
            name: _probabilities(result) if type(result) is list else result
            for name, result in zip(self._names, results, strict=True)
        }


class OnnxFormat:
    """ONNX files, or a folder with one of them and its external data."""

    name = "onnx"
    libraries: tuple[str, ...] = ("onnxruntime",)

    def sniff(self, path: Path) -> bool:
        return any(onnx_file.looks_like(file) for file in loose_files(path))

    def prepare(self) -> None:
        """Run the smallest graph once: the library sets up its tables of operators with the first session."""
        import onnxruntime

        session = onnxruntime.InferenceSession(_IDENTITY, _settings(onnxruntime), providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros(1, np.float32)})

    def load(self, path: Path, options: LoadOptions) -> OnnxModel:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_library(self.name, "onnx", error) from error
        file = single(path, self.name, [found for found in files(path) if onnx_file.looks_like(found)])
        onnx_file.check_external_data(file)
        session = onnxruntime.InferenceSession(str(file), _settings(onnxruntime), providers=["CPUExecutionProvider"])
        found = Signature(
            inputs=tuple(_tensor("input", node) for node in session.get_inputs()),
            outputs=tuple(_tensor("output", node) for node in session.get_outputs()),
        )
        declared = options.signature
        # What a graph says of the shapes of its outputs need not be true; what a person declares must.
        return OnnxModel(session, _agreed(declared, found), exact_outputs=bool(declared and declared.outputs))


def _settings(onnxruntime: Any) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = False
    settings.log_severity_level = 4
    return settings


def _tensor(what: str, node: Any) -> Tensor:
    if what == "output" and node.type in _PROBABILITY_MAPS:
        return Tensor(node.name, "FP32", (-1, -1))
    datatype = _TYPES.get(node.type)
    if datatype is None:
        raise LoadFailed(
            f"{what} {node.name!r} of the ONNX model is {node.type}, which is no tensor type of the protocol",
            reason="unsupported_type",
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return Tensor(node.name, datatype, shape)


def _agreed(declared: Signature | None, found: Signature) -> Signature:
    """The declared signature where there is one: it may narrow the graph's shapes, but not contradict the graph."""
    if declared is None:
        return found
    sides = (("input", declared.inputs, found.inputs), ("output", declared.outputs, found.outputs))
    for what, ours, theirs in sides:
        _check_side(what, ours, theirs)
    return Signature(declared.inputs or found.inputs, declared.outputs or found.outputs)


def _check_side(what: str, declared: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    if not declared:
        return
    real = {tensor.name: tensor for tensor in found}
    for tensor in declared:
        match = real.pop(tensor.name, None)
        if match is None or match.datatype != tensor.datatype:
            has = "no such tensor" if match is None else match.datatype
            raise LoadFailed(
                f"the signature declares {what} {tensor.name!r} as {tensor.datatype}, the ONNX model has {has}",
                reason="signature_mismatch",
            )
    if real and what == "input":
        raise LoadFailed(
            f"the signature does not declare input {next(iter(real))!r} of the ONNX model", reason="signature_mismatch"
        )


def _as_text(name: str, array: Array) -> Array:
    try:
        decoded = [element.decode() for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} holds bytes that are not UTF-8", reason="not_text") from error
    text = np.empty(len(decoded), object)
    text[:] = decoded
    return text.reshape(array.shape)


def _probabilities(rows: list[dict[Any, float]]) -> Array:
    return np.array([list(row.values()) for row in rows], np.float32)
