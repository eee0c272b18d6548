"""The numbered history and the way back."""

from __future__ import annotations

import msgspec
import pytest

from msm.kit.errors import Conflict, NotFound
from msm.resources.meta import Meta, ObjectKey
from msm.resources.serving import Model, ModelSpec, ModelStatus, VersionSpec

IRIS = ObjectKey("Model", "default", "iris")
V1 = VersionSpec(name="v1", uri="file:///models/iris-1.onnx")
V2 = VersionSpec(name="v2", uri="file:///models/iris-2.onnx")


def iris(*versions: VersionSpec, **spec) -> Model:
    return Model(metadata=Meta(name="iris"), spec=ModelSpec(versions=versions, **spec))


@pytest.fixture
async def two_generations(catalog):
    await catalog.apply([iris(V1)], who="ada")
    await catalog.apply([iris(V1, V2, aliases={"stable": "v2"})], who="bob")
    return catalog


async def test_history_tells_who_did_what_when(two_generations, clock):
    catalog = two_generations
    await clock.advance(10.0)
    await catalog.delete(IRIS, who="eve")
    entries = await catalog.history(IRIS)
    assert [(e.generation, e.action, e.who) for e in entries] == [
        (1, "created", "ada"),
        (2, "updated", "bob"),
        (3, "deleted", "eve"),
    ]
    assert entries[2].at - entries[1].at == pytest.approx(10.0)
    assert entries[0].resource.spec.versions == (V1,)
    assert entries[2].resource is None


async def test_history_of_an_unknown_object_is_not_found(two_generations):
    with pytest.raises(NotFound) as caught:
        await two_generations.history(ObjectKey("Model", "default", "irish"))
    assert caught.value.nearest == ("iris",)


async def test_a_generation_is_never_rewritten(two_generations):
    catalog = two_generations
    before = await catalog.history(IRIS)
    await catalog.put_status(IRIS, ModelStatus(message="seen"))
    await catalog.rollback(IRIS, to=1, who="ada")
    await catalog.delete(IRIS, who="ada")
    await catalog.apply([iris(V2)], who="ada")
    assert (await catalog.history(IRIS))[:2] == before


async def test_any_generation_can_be_read(two_generations):
    first = await two_generations.at_generation(IRIS, 1)
    assert (first.spec.versions, first.metadata.generation) == ((V1,), 1)
    with pytest.raises(NotFound, match="from 1 to 2"):
        await two_generations.at_generation(IRIS, 3)
    await two_generations.delete(IRIS, who="ada")
    with pytest.raises(NotFound, match="deletion"):
        await two_generations.at_generation(IRIS, 3)


async def test_a_rollback_is_a_new_generation_with_the_old_content(two_generations):
    change = await two_generations.rollback(IRIS, to=1, who="ada")
    assert (change.action, change.generation) == ("updated", 3)
    model = await two_generations.get(IRIS)
    assert (model.spec, model.metadata.generation) == (iris(V1).spec, 3)
    assert model == change.after
    entry = (await two_generations.history(IRIS))[-1]
    assert (entry.action, entry.restored, entry.who) == ("rolled_back", 1, "ada")


async def test_a_rollback_without_a_number_goes_to_the_newest_that_differs(two_generations):
    assert (await two_generations.rollback(IRIS, to=None, who="ada")).after.spec == iris(V1).spec
    again = await two_generations.rollback(IRIS, to=None, who="ada")
    assert again.after.spec.versions == (V1, V2)
    assert again.generation == 4


async def test_with_nothing_before_there_is_nothing_to_roll_back(catalog):
    await catalog.apply([iris(V1)], who="ada")
    with pytest.raises(Conflict) as caught:
        await catalog.rollback(IRIS, to=None, who="ada")
    assert caught.value.reason == "nothing_to_roll_back"
    assert (await catalog.rollback(IRIS, to=1, who="ada")).action == "unchanged"
    with pytest.raises(NotFound, match="no generation 2"):
        await catalog.rollback(IRIS, to=2, who="ada")
    with pytest.raises(NotFound):
        await catalog.rollback(ObjectKey("Model", "default", "none"), to=None, who="ada")


async def test_a_deleted_object_comes_back_by_rollback(two_generations):
    catalog = two_generations
    await catalog.delete(IRIS, who="ada")
    change = await catalog.rollback(IRIS, to=None, who="ada")
    assert (change.action, change.generation) == ("created", 4)
    assert (await catalog.get(IRIS)).spec.versions == (V1, V2)
    with pytest.raises(NotFound, match="deletion"):
        await catalog.rollback(IRIS, to=3, who="ada")


async def test_a_rollback_cannot_change_a_version_that_was_declared_anew(catalog):
    await catalog.apply([iris(V1)], who="ada")
    await catalog.delete(IRIS, who="ada")
    other = msgspec.structs.replace(V1, uri="file:///models/other.onnx")
    await catalog.apply([iris(other)], who="ada")
    with pytest.raises(Conflict) as caught:
        await catalog.rollback(IRIS, to=1, who="ada")
    assert caught.value.reason == "version_immutable"
