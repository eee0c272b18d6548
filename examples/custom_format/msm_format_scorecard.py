"""Scorecards in TOML: points for where a value lies, added up, as credit departments write them.

    kind = "scorecard"
    base = 500

    [[characteristics]]
    name = "income"
    missing = -10                                   # points when there is no value (NaN)
    bins = [{below = 20000, points = -30}, {below = 50000, points = 0}, {points = 25}]

Inputs: one FP64 tensor of shape [-1] for each characteristic. Outputs: `score`, FP64 [-1], and `points`, FP64
[-1, characteristics], which says where the score comes from. A scorecard holds no code, so it needs no trust.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msm.kit.errors import LoadFailed
from msm.runtime.formats.base import NUMERIC, Array, LoadOptions, files, single
from msm.runtime.signature import Signature, Tensor

MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Characteristic:
    """`edges` are the upper ends of all bins but the last; `points` has one more entry than `edges`."""

    name: str
    edges: Array
    points: Array
    missing: float

    def of(self, values: Array) -> Array:
        """The points of each value."""
        found = self.points[np.searchsorted(self.edges, values, side="right")]
        return np.where(np.isnan(values), self.missing, found)


class ScorecardModel:
    """A scorecard in memory. NumPy does the work, in microseconds: it may run on the worker's event loop."""

    accepts = NUMERIC
    exact_outputs = True
    may_block = False

    def __init__(self, base: float, characteristics: list[Characteristic]) -> None:
        self.signature = Signature(
            tuple(Tensor(each.name, "FP64", (-1,)) for each in characteristics),
            (Tensor("score", "FP64", (-1,)), Tensor("points", "FP64", (-1, len(characteristics)))),
        )
        self._base = base
        self._characteristics = characteristics

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Add up the points of each row."""
        points = np.stack([each.of(inputs[each.name]) for each in self._characteristics], axis=1)
        return {"score": self._base + points.sum(axis=1), "points": points}


class ScorecardFormat:
    """The format: how to tell a scorecard from other files, and how to read one."""

    name = "scorecard"
    libraries: tuple[str, ...] = ("tomllib",)

    def sniff(self, path: Path) -> bool:
        return any(_is_scorecard(file) for file in files(path))

    def load(self, path: Path, options: LoadOptions) -> ScorecardModel:
        file = single(path, self.name, [found for found in files(path) if _is_scorecard(found)])
        card = tomllib.loads(file.read_text("utf-8"))
        try:
            characteristics = [_characteristic(entry) for entry in card["characteristics"]]
            return ScorecardModel(float(card["base"]), characteristics)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise LoadFailed(f"the scorecard is wrong: {error}", reason="corrupt_artifact") from error


def _is_scorecard(file: Path) -> bool:
    if file.stat().st_size > MAX_BYTES:
        return False
    try:
        return tomllib.loads(file.read_text("utf-8")).get("kind") == "scorecard"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        return False


def _characteristic(entry: dict[str, Any]) -> Characteristic:
    """Raises ValueError and its kin when an entry breaks a rule."""
    bins = entry["bins"]
    edges = np.array([each["below"] for each in bins[:-1]], np.float64)
    if "below" in bins[-1] or (np.diff(edges) <= 0).any():
        raise ValueError(f"the bins of {entry['name']!r} must rise, and the last must be open")
    points = np.array([each["points"] for each in bins], np.float64)
    return Characteristic(str(entry["name"]), edges, points, float(entry.get("missing", 0)))
