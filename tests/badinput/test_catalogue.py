"""The catalogue is covered: every row has a case, or a reason why it cannot have one yet."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain

import pytest

from tests.badinput.cases import (
    AdminCase,
    ArtifactCase,
    CommandCase,
    Expect,
    GrpcCase,
    HttpCase,
    ManifestCase,
    NotYet,
    read,
)
from tests.badinput.test_artifacts import MAKERS

ROWS = {"T": 22, "R": 33, "B": 7, "G": 10, "O": 13, "M": 22, "Z": 10, "D": 19, "V": 6, "F": 5}
HTTP = tuple(chain.from_iterable(read(name, HttpCase) for name in ("http", "rest", "binary", "openai", "forms")))
EVERYTHING = (
    *HTTP,
    *read("grpc", GrpcCase),
    *read("manifests", ManifestCase),
    *read("artifacts", ArtifactCase),
    *read("admin", AdminCase),
    *read("command", CommandCase),
)
ELSEWHERE = {
    "T16": "test_http2", "T17": "test_http2", "T18": "test_connections", "T19": "test_connections",
    "R31": "test_connections", "D14": "test_admin",
}  # fmt: skip


def row_of(identity: str) -> str:
    match = re.fullmatch(r"([A-Z]\d+)[A-Za-z]", identity)
    assert match is not None, identity
    return match[1]


def test_every_row_of_the_catalogue_is_covered_or_has_a_reason_why_not():
    rows = {f"{part}{number}" for part, count in ROWS.items() for number in range(1, count + 1)}
    covered = {row_of(case.id) for case in EVERYTHING} | set(ELSEWHERE)
    postponed = {entry.row for entry in read("not_yet", NotYet)}
    assert rows == covered | postponed
    assert len(rows) == 136 + 11  # those of the catalogue, and of the forms of bodies that came later


def test_every_case_has_a_name_of_its_own():
    doubled = [identity for identity, count in Counter(case.id for case in EVERYTHING).items() if count > 1]
    assert doubled == []


def test_there_are_enough_inputs():
    assert len(EVERYTHING) >= 500


@pytest.mark.parametrize("case", [case for case in EVERYTHING if isinstance(case, Expect)], ids=lambda case: case.id)
def test_a_case_can_fail(case: Expect):
    """It has a status, and its patterns are regular expressions."""
    assert case.statuses
    assert all(status == 0 or 200 <= status < 600 for status in case.statuses)
    re.compile(case.message)


def test_every_generator_is_used():
    used = {case.make for case in read("artifacts", ArtifactCase)} - {None}
    assert used == set(MAKERS)
