"""Versions follow content, differences are minimal, dangling references are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.xds.names import CDS, EDS, ORDER, RDS, SRDS
from msm.xds.snapshot import Change, World, problems, version_of, versioned
from msm.xds.translate import Shared, Translator
from tests.unit.xds.plans import plan

TRANSLATOR = Translator(Shared("/run/rescue.sock"))
contents = st.dictionaries(
    st.sampled_from([CDS, EDS, SRDS, RDS]), st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=3))
)


def keys_of(world: World) -> set:
    return {(kind, name) for kind in ORDER for name in world.of(kind)}


@given(st.binary(), st.binary())
def test_versions_are_equal_exactly_when_contents_are(one, two):
    assert (version_of(one) == version_of(two)) is (one == two)


@given(contents, contents)
def test_applying_a_difference_gives_what_is_wanted_and_nothing_else(before, after):
    world = World()
    world.apply(Change(versioned(before)))
    change = world.difference(versioned(after), keys_of(world))
    assert all((now := world.get(r.key)) is None or now.version != r.version for r in change.upserts)
    world.apply(change)
    assert keys_of(world) == {(kind, name) for kind, named in after.items() for name in named}
    assert all(world.get((kind, name)).body == body for kind, named in after.items() for name, body in named.items())
    assert not world.difference(versioned(after), keys_of(world))


@given(contents)
def test_resources_and_removals_are_in_sending_order(made):
    world = World()
    resources = versioned(made)
    assert [ORDER.index(r.type_url) for r in resources] == sorted(ORDER.index(r.type_url) for r in resources)
    world.apply(Change(resources))
    removes = world.difference((), keys_of(world)).removes
    assert [ORDER.index(kind) for kind, _ in removes] == sorted(ORDER.index(kind) for kind, _ in removes)


def test_a_difference_touches_only_what_is_owned():
    world = World()
    world.apply(Change(versioned({SRDS: {"mine": b"1", "other": b"2"}})))
    change = world.difference(versioned({SRDS: {"new": b"3"}}), [(SRDS, "mine"), (SRDS, "gone long ago")])
    assert change.removes == ((SRDS, "mine"),)
    assert change.keys == {(SRDS, "mine"), (SRDS, "new")}


def test_a_part_of_a_change_removes_nothing():
    change = Change(versioned({CDS: {"a": b""}, SRDS: {"b": b""}}), ((EDS, "c"),))
    assert change.only(CDS, EDS) == Change(versioned({CDS: {"a": b""}}))
    assert not change.only(RDS)


@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        ((CDS, "default/iris/v1"), 'iris refers to Cluster "default/iris/v1", which does not exist'),
        (
            (EDS, "default/iris/v1"),
            'default/iris/v1 refers to ClusterLoadAssignment "default/iris/v1", which does not exist',
        ),
        ((CDS, "workers"), '~cold refers to Cluster "workers", which does not exist'),
        ((RDS, "~cold"), '~cold refers to RouteConfiguration "~cold", which does not exist'),
    ],
)
def test_a_dangling_reference_is_told(without, sentence):
    world = World()
    for resources in (TRANSLATOR.service(plan({"v1": 1})), TRANSLATOR.internal(), TRANSLATOR.workers(())):
        world.apply(Change(versioned(resources)))
    assert world.problems() == []
    world.apply(Change(removes=(without,)))
    assert sentence in world.problems()


def test_references_may_lead_into_the_world_around():
    world = World()
    resources = versioned(TRANSLATOR.service(plan({"v1": 1})))
    world.apply(Change(tuple(r for r in resources if r.type_url != SRDS)))
    scope = [r for r in resources if r.type_url == SRDS]
    assert problems(scope, world) == []
    assert problems(scope) != []
