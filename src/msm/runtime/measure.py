"""What a version costs: run in a child of the probation process, which may crash, hang or be killed.

The version is loaded twice. The first load pays for what the libraries set up once in a process; the growth of the
second one is what a copy costs in a worker that has other models of its kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import msgspec

from msm.kit.errors import LoadFailed
from msm.runtime import formats, memory
from msm.runtime.acceleration import model as acceleration
from msm.runtime.formats.base import LoadedModel, LoadOptions, zeros
from msm.runtime.signature import Signature
from msm.runtime.validate import check_outputs

_RUNS: Final = 5
_ENOUGH_S: Final = 0.2
# Native libraries report a failed allocation as an error of their own.
_NO_MEMORY: Final = re.compile(r"bad[ _]alloc|failed to allocate|unable to allocate|out of memory", re.IGNORECASE)


class ProbeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be probed, and within which limits. `memory_limit_bytes` bounds one copy. `accelerated` is the file
    of the converted model that is to serve in place of the artifact."""

    path: str
    format: str | None = None
    trusted: bool = False
    parameters: dict[str, Any] = {}
    signature: Signature | None = None
    timeout_s: float = 120.0
    memory_limit_bytes: int | None = None
    accelerated: str | None = None


class ProbeResult(msgspec.Struct, frozen=True):
    """What was found out. `predict_seconds` is None when the model fails on zeros, which is no fault."""

    format: str
    signature: Signature
    memory_bytes: int
    load_seconds: float
    predict_seconds: float | None


def measure(spec: ProbeSpec, enter: Callable[[str], None]) -> ProbeResult:
    """Load the version twice and run it. `enter` is told what is being done, for the report of a crash.

    Raises LoadFailed and the other errors of `formats.load`.
    """
    enter("loading")
    first = _load(spec)
    enter("predicting")
    predict_seconds(first.model)
    enter("loading")
    before = _settled_bytes()
    started = perf_counter()
    second = _load(spec)
    load_seconds = perf_counter() - started
    enter("predicting")
    fastest = predict_seconds(second.model)
    growth = max(0, _settled_bytes() - before)
    limit = spec.memory_limit_bytes
    if limit is not None and growth > limit:
        raise LoadFailed(f"the model takes {growth} bytes of memory, the limit is {limit}", reason="memory_limit")
    return ProbeResult(second.format, second.model.signature, growth, load_seconds, fastest)


def _load(spec: ProbeSpec) -> formats.Loaded:
    if spec.accelerated is not None:
        return formats.Loaded(spec.format or "", acceleration.load(Path(spec.accelerated)))
    return formats.load(Path(spec.path), spec.format, LoadOptions(spec.trusted, spec.parameters, spec.signature))


def _settled_bytes() -> int:
    """The memory in use, without what is freed already and only kept by the allocator."""
    memory.collect()
    memory.give_back()
    return memory.private_bytes()


def predict_seconds(model: LoadedModel) -> float | None:
    """The fastest of some predictions for one row of zeros, None when the model fails on them or takes anything.

    Raises MemoryError when even they do not fit into the limit.
    """
    signature = model.signature
    if not signature.inputs:
        return None
    inputs = zeros(signature)
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < _ENOUGH_S:
        started = perf_counter()
        try:
            check_outputs(signature, model.predict(dict(inputs)), exact=model.exact_outputs)
        except MemoryError:
            raise
        except Exception as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError from error
            return None
        times.append(perf_counter() - started)
    return min(times)
