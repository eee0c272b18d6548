"""What a benchmark reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured number beside its goal. `met` is None for a number that has no goal and is told for orientation."""

    name: str
    value: float
    unit: str
    goal: str
    met: bool | None
