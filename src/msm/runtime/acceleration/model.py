"""The converted model as a worker holds it: a session of onnxruntime with the signature of the original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from msm.kit.errors import InvalidInput, LoadFailed
from msm.runtime.acceleration import plan as plans
from msm.runtime.acceleration.plan import Feed, Plan, Take
from msm.runtime.formats.base import NUMERIC, Array, missing_library
from msm.runtime.protocols.tensors import DTYPES
from msm.runtime.signature import Tensor

LARGE: Final = 1e30
_WORDS: Final = {
    "nan": "NaN",
    "infinity": "infinity",
    "huge": "a number beyond the range of FP32",
    "large": f"a number beyond {LARGE:g}",
}


class AcceleratedModel:
    """Answers in place of the original. What the original raises on is InvalidInput here, never an answer."""

    exact_outputs = True
    may_block = False

    def __init__(self, session: Any, plan: Plan) -> None:
        self.signature = plan.signature
        self.accepts = NUMERIC
        self.way = plan.way
        self._session = session
        self._feeds = [(feed, [DTYPES[name] for name in feed.through]) for feed in plan.feeds]
        outputs = {tensor.name: tensor for tensor in plan.signature.outputs}
        self._takes = [(take, outputs[take.name]) for take in plan.takes]
        self._graph_outputs = list(dict.fromkeys(take.graph for take in plan.takes))
        self._refuses = plan.refuses

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run the graph. Raises InvalidInput for numbers that the original does not take."""
        feeds: dict[str, Array] = {}
        with np.errstate(over="ignore", invalid="ignore"):
            for feed, dtypes in self._feeds:
                array = inputs[feed.name]
                if self._refuses:
                    _refuse(feed, array, self._refuses)
                for dtype in dtypes:
                    array = array.astype(dtype, copy=False)
                feeds[feed.graph] = array.reshape(-1, 1) if feed.column else array
            results = dict(zip(self._graph_outputs, self._session.run(self._graph_outputs, feeds), strict=True))
            return {take.name: _taken(results[take.graph], take, tensor) for take, tensor in self._takes}


def _refuse(feed: Feed, array: Array, kinds: Sequence[str]) -> None:
    """Raises InvalidInput for the kinds of numbers that are refused; cheap when there is nothing odd at all."""
    if array.dtype.kind != "f":
        return
    seen = array.astype(np.float32) if "huge" in kinds and array.dtype.itemsize > 4 else array
    if np.isfinite(seen).all() and ("large" not in kinds or not (np.abs(array) > LARGE).any()):
        return
    finite = np.isfinite(array)
    found = {
        "nan": np.isnan(array).any(),
        "infinity": np.isinf(array).any(),
        "huge": (np.isinf(seen) & finite).any(),
        "large": ((np.abs(array) > LARGE) & finite).any(),
    }
    for kind in kinds:
        if found[kind]:
            message = f"input {feed.name!r} holds {_WORDS[kind]}, which the model does not take"
            raise InvalidInput(message, reason="value_not_taken")


def _taken(result: Array, take: Take, tensor: Tensor) -> Array:
    if take.column is not None:
        result = result[:, take.column]
    if tensor.datatype != "BYTES":
        result = result.astype(DTYPES[tensor.datatype], copy=False)
    if len(tensor.shape) != result.ndim:
        # Converters give one column where the original gives a vector, and the other way round.
        result = result.reshape(-1) if len(tensor.shape) == 1 else result.reshape(-1, *tensor.shape[1:])
    return result


def session(source: str | bytes) -> Any:
    """A session like the one of an ONNX version: one thread, no arena. Raises Unsupported without the library."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_library("onnx", "accelerate", error) from error
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = False
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def load(path: Path) -> AcceleratedModel:
    """The converted model in the file at `path`. Raises LoadFailed, Unsupported."""
    if not path.is_file():
        raise LoadFailed("the converted model is not there", reason="artifact_missing")
    try:
        made = session(str(path))
        told = made.get_modelmeta().custom_metadata_map.get(plans.KEY, "")
        return AcceleratedModel(made, plans.decode(told.encode()))
    except msgspec.DecodeError as error:
        raise LoadFailed("the file is no converted model of this mesh", reason="wrong_format") from error
    except MemoryError as error:
        raise LoadFailed("there is not enough memory to load the model", reason="memory_limit") from error
    except RuntimeError as error:  # onnxruntime's errors derive from it
        raise LoadFailed("the converted model could not be loaded", reason="corrupt_artifact") from error
