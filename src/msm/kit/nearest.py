"""The names a person may have meant."""

from __future__ import annotations

from collections.abc import Iterable

from rapidfuzz import fuzz, process

LIKELY = 60.0  # of 100; below this a hint misleads more than it helps


def nearest(wanted: str, known: Iterable[str], *, most: int = 3) -> tuple[str, ...]:
    """The names most like `wanted`, best first, at most `most`; empty when none is close."""
    found = process.extract(wanted, list(known), scorer=fuzz.ratio, limit=most, score_cutoff=LIKELY)
    return tuple(name for name, _, _ in found)


def hint(names: Iterable[str]) -> str:
    """A sentence tail for an error: "; did you mean 'iris' or 'iris2'?", or nothing."""
    quoted = [f"'{name}'" for name in names]
    return f"; did you mean {' or '.join(quoted)}?" if quoted else ""
