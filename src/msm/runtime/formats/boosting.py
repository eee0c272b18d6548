"""What the formats of boosted trees share: one matrix in, one tensor out."""

from __future__ import annotations

from typing import Any

from msm.kit.errors import LoadFailed
from msm.runtime.protocols.tensors import wire_array
from msm.runtime.signature import Datatype, Signature, Tensor


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


def one_output(declared: Signature | None, trial: Any) -> tuple[Tensor]:
    """The output as `trial`, a prediction for one row, shows it; by its declared name if there is one."""
    datatype, array = wire_array("predict", trial)
    found = Tensor("predict", datatype, (-1, *array.shape[1:]))  # type: ignore[arg-type]  # a key of DTYPES
    if declared is None or not declared.outputs:
        return (found,)
    first, *more = declared.outputs
    if more or first.datatype != found.datatype or len(first.shape) != len(found.shape):
        raise LoadFailed(
            f"the model gives one output of {found.datatype} {list(found.shape)}, the signature declares another",
            reason="signature_mismatch",
        )
    return (first,)
