"""What deploy declares, from the model as it is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from msm.cli.deploying import Wanted, deployed, next_version
from msm.planning.routing import desired_split
from msm.resources.meta import ObjectKey
from msm.resources.serving import Model
from msm.resources.validate import check, check_change

KEY = ObjectKey("Model", "default", "iris")


def present(*versions: str, **spec: Any) -> Model:
    declared = [{"name": name, "uri": f"s3://b/{name}", "digest": "sha256:" + "a" * 64} for name in versions]
    plain = {"metadata": {"name": "iris", "resourceVersion": 7}, "spec": {"versions": declared, **spec}}
    return msgspec.convert(plain, Model)


def wanted(**more: Any) -> Wanted:
    return Wanted(key=KEY, uri=more.pop("uri", "s3://b/new"), **more)


def shares(model: Model) -> dict[str, int]:
    return {entry.version: entry.weight for entry in desired_split(model)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], "v1"), (["v1"], "v2"), (["v9", "v10", "x"], "v11"), (["2024"], "v1"), (["v07", "v2"], "v3")],
)
def test_the_next_version_follows_the_highest(names: list[str], expected: str):
    assert next_version(present(*names).spec if names else None) == expected


SPLIT = {"split": [{"version": "v1", "weight": 100}]}


@pytest.mark.parametrize(
    ("model", "traffic", "expected"),
    [
        (present("v1"), True, {"v2": 100}),
        (present("v1"), False, {"v1": 100}),
        (present("v1", aliases={"stable": "v1"}), True, {"v2": 100}),
        (present("v1", aliases={"stable": "v1"}), False, {"v1": 100}),
        (present("v1", traffic=SPLIT), True, {"v2": 100}),
        (present("v1", traffic=SPLIT), False, {"v1": 100}),
        (present("v1", traffic=SPLIT, aliases={"stable": "v1"}), True, {"v2": 100}),
        (None, False, {"v1": 100}),
    ],
)
def test_traffic_goes_where_it_was_asked_to(model: Model | None, traffic: bool, expected: dict[str, int]):
    after, _ = deployed(model, wanted(traffic=traffic))
    assert check(after) == ()
    assert shares(after) == expected


def test_being_the_newest_stays_the_rule_where_it_was():
    after, name = deployed(present("v1"), wanted())
    assert (name, after.spec.traffic.split) == ("v2", ())


def test_an_old_version_deployed_again_gets_the_traffic_and_is_not_changed():
    before = present("v1", "v2")
    after, name = deployed(before, wanted(version="v1", uri="s3://b/v1"))
    assert name == "v1"
    assert check_change(before, after) == ()
    assert [version.name for version in after.spec.versions] == ["v1", "v2"]
    assert shares(after) == {"v1": 100}


def test_sticky_and_mirror_stay():
    before = present("v1", traffic={**SPLIT, "sticky": {"header": "x-user"}, "mirror": {"version": "v1", "percent": 5}})
    after, _ = deployed(before, wanted())
    assert after.spec.traffic.sticky == before.spec.traffic.sticky
    assert after.spec.traffic.mirror == before.spec.traffic.mirror


def test_what_is_written_is_guarded_by_what_was_seen():
    assert deployed(present("v1"), wanted())[0].metadata.resource_version == 7


def test_labels_alias_and_bounds_are_added():
    after, _ = deployed(present("v1", scaling={"max": 2}), wanted(labels={"a": "b"}, alias="canary", least=3))
    assert after.metadata.labels == {"a": "b"}
    assert after.spec.aliases == {"canary": "v2"}
    assert (after.spec.scaling.min, after.spec.scaling.max) == (3, 3)
