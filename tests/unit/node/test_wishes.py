"""What residency is told of a model's versions."""

from __future__ import annotations

import pytest

from msm.node.decisions import Decisions
from msm.node.guilt import Guilt
from msm.node.refusals import failed_version, unavailable
from msm.node.wishes import takes_traffic
from msm.planning.moves import Rejection
from msm.resources.meta import Meta
from msm.resources.serving import (
    Mirror,
    Model,
    ModelSpec,
    ModelStatus,
    SplitEntry,
    Traffic,
    VersionKey,
    VersionSpec,
    VersionStatus,
)

KEY = VersionKey("default", "iris", "v1")
ALL_TO_V2 = SplitEntry(version="v2", weight=100)


def model(traffic: Traffic, **phases: str) -> Model:
    versions = tuple(VersionSpec(name=name, uri=f"file:///{name}") for name in ("v1", "v2", "v3"))
    status = ModelStatus(
        versions={name: VersionStatus(phase=phase) for name, phase in phases.items()},
        traffic=(SplitEntry(version="v1", weight=100),),
    )
    return Model(metadata=Meta(name="iris"), spec=ModelSpec(versions=versions, traffic=traffic), status=status)


@pytest.mark.parametrize(
    ("traffic", "phases", "expected"),
    [
        (Traffic(), {"v3": "Valid"}, {"v3"}),
        (Traffic(), {"v1": "Valid", "v3": "Probing"}, {"v1", "v3"}),
        (Traffic(split=(ALL_TO_V2, SplitEntry(version="v3", weight=0))), {"v2": "Valid"}, {"v2"}),
        (Traffic(mirror=Mirror(version="v2", percent=5)), {"v3": "Valid"}, {"v2", "v3"}),
        (Traffic(mirror=Mirror(version="v2", percent=0)), {"v3": "Valid"}, {"v3"}),
    ],
)  # fmt: skip
def test_the_minimum_holds_for_versions_that_take_traffic_now_or_next(
    traffic: Traffic, phases: dict[str, str], expected: set[str]
):
    assert takes_traffic(model(traffic, **phases)) == expected


def test_new_content_begins_without_guilt():
    guilt = Guilt()
    guilt.blame(KEY, 10.0, certain=True)
    assert guilt.blame(KEY, 20.0, certain=True).isolated
    assert guilt.verdict(KEY, 30.0).isolated
    assert guilt.count(KEY) == 2
    guilt.clear(KEY)
    assert not guilt.verdict(KEY, 30.0).isolated


def test_a_failed_version_is_refused_with_its_own_reason():
    status = VersionStatus(phase="Failed", reason="digest_mismatch", message="the artifact has another digest")
    error = failed_version(KEY, status)
    assert error.reason == "digest_mismatch"
    assert error.message == "model iris version v1 cannot be used: the artifact has another digest"


def test_a_rejection_becomes_an_error_with_the_time_to_try_again():
    failed = unavailable(Rejection(KEY, "load_failed", "no such operator", True, retry_at=130.0), 100.0)
    assert (failed.reason, failed.retry_after_s) == ("load_failed", 30.0)
    assert failed.message == "model iris version v1 could not be loaded: no such operator"
    room = unavailable(Rejection(KEY, "oversized", "it is too large", True), 100.0)
    assert (room.reason, room.retry_after_s) == ("oversized", 1.0)


def test_rejections_are_news_once_and_rotate():
    decisions = Decisions()
    other = VersionKey("default", "iris", "v2")
    assert decisions.rejected(Rejection(KEY, "busy", "a", False))
    assert decisions.rejected(Rejection(other, "no_room", "b", False))
    assert not decisions.rejected(Rejection(KEY, "busy", "c", False))
    assert list(decisions.open()) == [other, KEY]
    assert list(decisions.open("busy")) == [KEY]
    assert decisions.rejected(Rejection(KEY, "no_room", "d", False))
    decisions.resolved(KEY)
    assert decisions.rejection(KEY) is None


def test_explanations_keep_the_newest_reasons_first():
    decisions = Decisions()
    for number in range(12):
        decisions.made(KEY, "Loading", f"try {number}", {})
    reasons = decisions.reasons(KEY)
    assert [reason.message for reason in reasons][:2] == ["try 11", "try 10"]
    assert len(reasons) == 8
    decisions.forget(KEY)
    assert decisions.reasons(KEY) == ()
