"""Reads MLflow's `MLmodel` file without MLflow: the flavors, and the signature as tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from msm.kit.errors import LoadFailed
from msm.runtime.protocols.tensors import DATATYPES
from msm.runtime.signature import Datatype, Signature, Tensor

_COLUMNS: Final[dict[str, Datatype]] = {
    "boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64", "string": "BYTES",
    "binary": "BYTES", "datetime": "BYTES", "array": "BYTES", "object": "BYTES", "map": "BYTES", "any": "BYTES",
}  # fmt: skip
JSON_KINDS: Final = frozenset({"array", "object", "map", "any"})


@dataclass(frozen=True, slots=True)
class MLmodel:
    """What an MLmodel file says. `kinds` has the MLflow type of each input that is a column; none for tensors."""

    flavors: Mapping[str, Mapping[str, Any]]
    signature: Signature
    kinds: Mapping[str, str]


def read(folder: Path) -> MLmodel:
    """The MLmodel file of a folder. Raises LoadFailed when it is missing or broken."""
    try:
        found = yaml.safe_load((folder / "MLmodel").read_bytes())
        flavors = found["flavors"]
        written = found.get("signature") or {}
        inputs = json.loads(written.get("inputs") or "[]")
        outputs = json.loads(written.get("outputs") or "[]")
        kinds = {_name(entry, index, "input"): str(entry["type"]) for index, entry in enumerate(inputs)}
        signature = Signature(_tensors(inputs, "input"), _tensors(outputs, "output"))
        checked = {str(name): entry for name, entry in flavors.items() if isinstance(entry, dict)}
    except FileNotFoundError as error:
        raise LoadFailed("the folder holds no MLmodel file", reason="wrong_format") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadFailed("the MLmodel file is broken", reason="corrupt_artifact") from error
    if not checked:
        raise LoadFailed("the MLmodel file names no flavors", reason="corrupt_artifact")
    return MLmodel(checked, signature, {name: kind for name, kind in kinds.items() if kind != "tensor"})


def _name(entry: Mapping[str, Any], index: int, what: str) -> str:
    return str(entry["name"]) if entry.get("name") is not None else f"{what}-{index}"


def _tensors(entries: Sequence[Mapping[str, Any]], what: str) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for index, entry in enumerate(entries):
        name = _name(entry, index, what)
        if entry["type"] == "tensor":
            spec = entry["tensor-spec"]
            found.append(Tensor(name, _datatype(spec["dtype"]), tuple(int(size) for size in spec["shape"])))
        else:
            optional = entry.get("required") is False
            found.append(Tensor(name, _COLUMNS[str(entry["type"])], (-1,), optional))
    return tuple(found)


def _datatype(dtype: str) -> Datatype:
    kind = np.dtype(dtype)
    return "BYTES" if kind.kind in "USO" else DATATYPES[kind]  # type: ignore[return-value]  # a datatype
