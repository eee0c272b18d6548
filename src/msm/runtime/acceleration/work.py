"""Converts a version, compares, measures and decides: run in a child of the probation process, which may be killed.

The original is loaded here once more; what a worker serves afterwards is the file that is left at `target`, or the
original when there is none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import msgspec
import numpy as np

from msm.kit.errors import InvalidInput, MsmError
from msm.runtime import formats
from msm.runtime.acceleration import inputs as drawing
from msm.runtime.acceleration import plan as plans
from msm.runtime.acceleration.convert import Original, Unfit, Way, original_of, ways
from msm.runtime.acceleration.decide import Times, Verdict, decide
from msm.runtime.acceleration.inputs import Batch
from msm.runtime.acceleration.model import AcceleratedModel, session
from msm.runtime.acceleration.plan import Special
from msm.runtime.acceleration.verify import TOLERANCE, Comparison, compare, exact_outputs
from msm.runtime.formats.base import Array, LoadedModel, LoadOptions, first_line
from msm.runtime.signature import Signature

_SINGLE: Final = 64  # rows that are asked one by one as well
_BATCH: Final = 64
_RUNS: Final = 30
_ENOUGH_S: Final = 1.0
_MOST_SAMPLES: Final = 10_000


class AccelerateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which version, and the file to write. Limits as in `ProbeSpec`."""

    path: str
    target: str
    format: str | None = None
    trusted: bool = False
    parameters: dict[str, Any] = {}
    signature: Signature | None = None
    timeout_s: float = 120.0
    memory_limit_bytes: int | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    `largest_difference` of a score is absolute up to 1 and relative above. The speeds are ratios, the original's time
    to the converted model's, for one row and for a batch of 64.
    """

    used: bool
    reason: str
    way: str | None = None
    rtol: float = TOLERANCE.rtol
    atol: float = TOLERANCE.atol
    largest_difference: float | None = None
    inputs: int = 0
    speed_one: float | None = None
    speed_batch: float | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """Rows and what the original gives for them; None: it raises on every one of them."""

    batch: Batch
    want: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Trial:
    """All that candidates are compared on."""

    original: Original
    cases: list[_Case]
    refuses: tuple[Special, ...]
    exact: frozenset[str] = field(default_factory=frozenset)


def accelerate(spec: AccelerateSpec, enter: Callable[[str], None]) -> Report:
    """Try every way until one is used; write its graph to `spec.target`. `enter` is told what is being done.

    Raises the errors of `formats.load`; whatever a conversion raises is a reason in the report.
    """
    enter("loading")
    path = Path(spec.path)
    loaded = formats.load(path, spec.format, LoadOptions(spec.trusted, spec.parameters, spec.signature))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            original = original_of(loaded.model)
            enter("asking")
            trial = _prepare(original, path, spec.parameters.get(drawing.SAMPLES))
            return _first_used(trial, list(ways(original)), Path(spec.target), enter)
        except Unfit as why:
            return Report(used=False, reason=str(why))
        except InvalidInput as error:
            return Report(used=False, reason=error.message)


def _first_used(trial: _Trial, candidates: list[Way], target: Path, enter: Callable[[str], None]) -> Report:
    """The report of the first way that is used, else of the one that came closest, with the reasons of all."""
    failed: list[Report] = []
    for way in candidates:
        enter("converting")
        try:
            content = _converted(trial, way)
            model = AcceleratedModel(session(content), _plan_in(content))
        except MemoryError:
            raise
        except Unfit as why:
            failed.append(Report(used=False, reason=str(why), way=way.name))
            continue
        except Exception as error:  # the converters raise whatever comes up
            told = error.message if isinstance(error, MsmError) else first_line(error)
            failed.append(Report(used=False, reason=f"it could not be converted: {told}", way=way.name))
            continue
        report = _judged(trial, model, enter)
        if report.used:
            target.write_bytes(content)
            return report
        failed.append(report)
    closest = max(failed, key=lambda report: (report.speed_one is not None, report.inputs > 0))
    reasons = "; ".join(dict.fromkeys(f"{report.way}: {report.reason}" for report in failed))
    return msgspec.structs.replace(closest, reason=reasons)


def _converted(trial: _Trial, way: Way) -> bytes:
    """The ONNX file, with its plan in it."""
    made, plan = way.make()
    entry = made.metadata_props.add()
    entry.key = plans.KEY
    entry.value = plans.encode(msgspec.structs.replace(plan, refuses=trial.refuses)).decode()
    content: bytes = made.SerializeToString()
    return content


def _plan_in(content: bytes) -> plans.Plan:
    told = session(content).get_modelmeta().custom_metadata_map[plans.KEY]
    return plans.decode(told.encode())


# ---- what the original says


def _prepare(original: Original, path: Path, samples: Any) -> _Trial:
    batches = drawing.drawn(original)
    own = drawing.recorded(original, path, samples)
    if own is not None:
        if own.rows > _MOST_SAMPLES:
            raise InvalidInput(f"there are {own.rows} samples, at most {_MOST_SAMPLES} are taken")
        batches.append(own)
    cases = []
    for batch in batches:
        want = _asked(original.model, batch.inputs)
        if want is None:
            raise Unfit(f"the original fails on inputs of kind {batch.kind!r}")
        cases.append(_Case(batch, want))
        cases += [_Case(row, _asked(original.model, row.inputs)) for row in _rows(batch, _SINGLE // len(batches))]
    refuses: list[Special] = []
    kinds: tuple[Special, ...] = ("nan", "infinity", "huge")
    for kind in kinds:
        more, refused = _special(original, kind)
        cases += more
        refuses += refused
    exact = exact_outputs(original.signature.outputs, labels=original.labels)
    return _Trial(original, cases, tuple(refuses), exact)


def _special(original: Original, kind: Special) -> tuple[list[_Case], list[Special]]:
    """What the original makes of special numbers: answers to be met, or a refusal to be kept. It must be the same
    for all features."""
    batch = drawing.with_specials(original, kind)
    if batch is None:
        return [], []
    want = _asked(original.model, batch.inputs)
    if want is not None:
        return [_Case(batch, want)], []
    taken = [_asked(original.model, row.inputs) is not None for row in _rows(batch, batch.rows)]
    if not any(taken):
        if kind == "huge" and not _takes_fp32_range(original):
            return [_Case(batch, None)], ["large"]
        return [_Case(batch, None)], [kind]
    if kind == "huge":  # the border lies beyond a scaling: keep well below it
        return [], ["large"]
    raise Unfit(f"the original takes {kind} in some features only")


def _takes_fp32_range(original: Original) -> bool:
    """Whether the original takes everything up to the largest number of FP32."""
    batch = drawing.with_specials(original, "large")
    if batch is None:
        return True
    within = np.array([all(np.abs(a[i]).max() < 3.41e38 for a in batch.inputs.values()) for i in range(batch.rows)])
    return _asked(original.model, {name: array[within] for name, array in batch.inputs.items()}) is not None


def _rows(batch: Batch, most: int) -> list[Batch]:
    """Single rows, evenly from all of the batch."""
    step = max(1, math.ceil(batch.rows / max(1, most)))
    return [
        Batch(batch.kind, {name: array[index : index + 1] for name, array in batch.inputs.items()})
        for index in range(0, batch.rows, step)
    ]


def _asked(model: LoadedModel, rows: dict[str, Array]) -> Mapping[str, Any] | None:
    """The answer, None when the model raises."""
    try:
        return model.predict(dict(rows))
    except MemoryError:
        raise
    except Exception:
        return None


# ---- the candidate


def _judged(trial: _Trial, model: AcceleratedModel, enter: Callable[[str], None]) -> Report:
    enter("comparing")
    comparison = Comparison()
    for case in trial.cases:
        comparison = comparison.and_then(_compared(trial, model, case))
        if not comparison.agrees:
            break
    one = batch = None
    if comparison.agrees:
        enter("timing")
        rows = trial.cases[0].batch
        one, batch = _times(trial.original.model, model, rows, 1), _times(trial.original.model, model, rows, _BATCH)
    verdict: Verdict = decide(comparison, one, batch)
    return Report(
        used=verdict.used,
        reason=verdict.reason,
        way=model.way,
        largest_difference=comparison.largest if comparison.rows else None,
        inputs=comparison.rows,
        speed_one=one.ratio if one else None,
        speed_batch=batch.ratio if batch else None,
    )


def _compared(trial: _Trial, model: AcceleratedModel, case: _Case) -> Comparison:
    if case.want is None:
        for row in _rows(case.batch, case.batch.rows):
            if _asked(model, row.inputs) is not None:
                return Comparison(why=f"it answers on {case.batch.kind}, where the original raises")
        return Comparison(rows=case.batch.rows)
    got = _asked(model, case.batch.inputs)
    if got is None:
        return Comparison(why=f"it fails on inputs of kind {case.batch.kind!r}, where the original answers")
    found = compare(trial.original.signature, trial.exact, case.want, got)
    return found if found.agrees else _told_kind(found, case.batch.kind)


def _told_kind(found: Comparison, kind: str) -> Comparison:
    """The comparison with the kind of inputs told."""
    return Comparison(found.rows, found.largest, f"{found.why} (inputs of kind {kind!r})")


def _times(original: LoadedModel, converted: LoadedModel, rows: Batch, count: int) -> Times:
    """The fastest calls of both, in turns, so that what else the machine does hits both alike."""
    some = {name: array[:count].copy() for name, array in rows.inputs.items()}
    fastest = [math.inf, math.inf]
    total = 0.0
    for _ in range(_RUNS):
        for index, model in enumerate((original, converted)):
            started = perf_counter()
            model.predict(dict(some))
            took = perf_counter() - started
            fastest[index] = min(fastest[index], took)
            total += took
        if total > _ENOUGH_S:
            break
    return Times(*fastest)
