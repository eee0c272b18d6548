"""What the formats of boosted trees share: finding their file, one matrix in, the answers' shapes from a trial.

A format of this kind says how to tell its files and how to read one into a function from rows to outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msm.kit.errors import LoadFailed
from msm.runtime.formats.base import (
    NUMERIC,
    Array,
    LoadOptions,
    files,
    loose_files,
    missing_library,
    single,
    zeros,
)
from msm.runtime.protocols.tensors import wire_array
from msm.runtime.signature import Datatype, Signature, Tensor

Compute = Callable[[dict[str, Array]], Sequence[Any]]


class BoostedModel:
    """Trees in memory: `compute` gives the outputs in the signature's order, `source` is the library's own object."""

    exact_outputs = True
    may_block = False
    accepts = NUMERIC

    def __init__(self, source: Any, compute: Compute, signature: Signature) -> None:
        self.signature = signature
        self.source = source
        self._compute = compute
        self._outputs = [tensor.name for tensor in signature.outputs]

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Predict the rows."""
        return dict(zip(self._outputs, self._compute(inputs), strict=True))


class BoostedFormat(ABC):
    """Base of the formats: a subclass says what its files look like and how one is read."""

    name: str
    libraries: tuple[str, ...]

    @abstractmethod
    def looks_like(self, file: Path) -> bool:
        """Whether a file is of this format, by its first bytes."""

    @abstractmethod
    def read(self, file: Path, options: LoadOptions) -> BoostedModel:
        """The model in a file. May raise ImportError; LoadFailed when the file is broken."""

    def sniff(self, path: Path) -> bool:
        return any(self.looks_like(file) for file in loose_files(path))

    def load(self, path: Path, options: LoadOptions) -> BoostedModel:
        file = single(path, self.name, [found for found in files(path) if self.looks_like(found)])
        try:
            return self.read(file, options)
        except ImportError as error:
            raise missing_library(self.name, self.name, error) from error


def broken(library: str, error: Exception) -> LoadFailed:
    """The error for a file that the library does not read."""
    problem = LoadFailed(f"the {library} model is broken or of a newer version", reason="corrupt_artifact")
    problem.__cause__ = error
    return problem


def matrix_model(
    source: Any, compute: Callable[[Array], Sequence[Any]], matrix: tuple[Tensor], names: Sequence[str], declared: Any
) -> BoostedModel:
    """The model that computes the outputs `names` from one matrix. Raises LoadFailed when `declared` does not fit."""
    name = matrix[0].name

    def on_inputs(inputs: dict[str, Array]) -> Sequence[Any]:
        return compute(inputs[name])

    trial = on_inputs(zeros(Signature(matrix)))
    return BoostedModel(source, on_inputs, Signature(matrix, outputs(declared, names, trial)))


def one_input(declared: Signature | None, datatype: Datatype, features: int) -> tuple[Tensor]:
    """The declared input, which must fit the model, or the default one. Raises LoadFailed."""
    if declared is None or not declared.inputs:
        return (Tensor("input-0", datatype, (-1, features)),)
    first, *more = declared.inputs
    if more or first.datatype != datatype or not first.allows((-1, features)):
        raise LoadFailed(
            f"the model takes one input of {datatype} [-1, {features}], the signature declares "
            f"{', '.join(f'{t.name} {t.datatype} {list(t.shape)}' for t in declared.inputs)[:200]}",
            reason="signature_mismatch",
        )
    return (first,)


def outputs(declared: Signature | None, names: Sequence[str], trial: Sequence[Any]) -> tuple[Tensor, ...]:
    """The outputs as `trial`, a prediction for one row, shows them; by their declared names, in this order, if any.

    Raises LoadFailed when the declared ones do not fit.
    """
    found: list[Tensor] = []
    for name, value in zip(names, trial, strict=True):
        datatype, array = wire_array(name, value)
        found.append(Tensor(name, datatype, (-1, *array.shape[1:])))  # type: ignore[arg-type]  # a key of DTYPES
    if declared is None or not declared.outputs:
        return tuple(found)
    fits = len(declared.outputs) == len(found) and all(
        ours.datatype == theirs.datatype and len(ours.shape) == len(theirs.shape)
        for ours, theirs in zip(declared.outputs, found, strict=True)
    )
    if not fits:
        raise LoadFailed(
            "the model gives "
            + ", ".join(f"{tensor.name} of {tensor.datatype} {list(tensor.shape)}" for tensor in found)
            + ", the signature declares other outputs",
            reason="signature_mismatch",
        )
    return declared.outputs
