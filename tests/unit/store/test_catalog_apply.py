"""What `apply` and `delete` accept, refuse and leave behind."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from msm.kit.errors import Conflict, InvalidInput, NotFound
from msm.resources.meta import Meta, ObjectKey
from msm.resources.serving import Model, ModelSpec, ModelStatus, Scaling, VersionSpec, VersionStatus
from msm.store import Catalog, StoreConflict
from tests.unit.store.overtaken import OvertakenStore

IRIS = ObjectKey("Model", "default", "iris")
V1 = VersionSpec(name="v1", uri="file:///models/iris-1.onnx")
V2 = VersionSpec(name="v2", uri="file:///models/iris-2.onnx")


def a_model(name: str = "iris", *versions: VersionSpec, resource_version: int | None = None, **spec) -> Model:
    return Model(
        metadata=Meta(name=name, resource_version=resource_version),
        spec=ModelSpec(versions=versions or (V1,), **spec),
    )


async def test_a_new_object_gets_generation_1_and_its_identity(catalog):
    (change,) = await catalog.apply([a_model()], who="ada")
    assert (change.key, change.action, change.generation, change.before) == (IRIS, "created", 1, None)
    meta = change.after.metadata
    assert meta.generation == 1
    assert meta.created_at == "2023-11-14T22:13:20.000Z"
    assert meta.uid
    assert await catalog.get(IRIS) == change.after


async def test_the_same_declaration_again_is_unchanged_and_writes_nothing(catalog, store):
    (first,) = await catalog.apply([a_model()], who="ada")
    before = (await store.list(b"")).revision
    (again,) = await catalog.apply([a_model()], who="bob")
    assert (again.action, again.generation, again.after) == ("unchanged", 1, first.after)
    assert (await store.list(b"")).revision == before


async def test_a_change_keeps_identity_and_status_and_counts_on(catalog, clock):
    (created,) = await catalog.apply([a_model()], who="ada")
    status = ModelStatus(observed_generation=1, versions={"v1": VersionStatus(phase="Valid")})
    await catalog.put_status(IRIS, status)
    await clock.advance(60.0)
    (updated,) = await catalog.apply([a_model("iris", V1, V2)], who="ada")
    assert (updated.action, updated.generation) == ("updated", 2)
    assert updated.after.metadata.uid == created.after.metadata.uid
    assert updated.after.metadata.created_at == created.after.metadata.created_at
    assert updated.before.status == updated.after.status == status
    assert await catalog.get(IRIS) == updated.after


@pytest.mark.parametrize("part", ["labels", "annotations"])
async def test_labels_and_annotations_are_part_of_the_declaration(catalog, part):
    await catalog.apply([a_model()], who="ada")
    changed = msgspec.structs.replace(a_model(), metadata=Meta(name="iris", **{part: {"a": "b"}}))
    (change,) = await catalog.apply([changed], who="ada")
    assert (change.action, change.generation) == ("updated", 2)
    assert getattr((await catalog.get(IRIS)).metadata, part) == {"a": "b"}


async def test_what_the_mesh_fills_in_is_not_taken_from_the_document(catalog):
    forged = Meta(name="iris", generation=99, uid="forged", created_at="forged")
    status = ModelStatus(message="forged")
    (change,) = await catalog.apply([msgspec.structs.replace(a_model(), metadata=forged, status=status)], who="eve")
    meta = change.after.metadata
    assert (meta.generation, change.after.status) == (1, None)
    assert "forged" not in (meta.uid, meta.created_at)


async def test_many_documents_are_all_or_nothing_in_one_revision(catalog, store):
    before = (await store.list(b"")).revision
    changes = await catalog.apply([a_model(f"m{n:03d}") for n in range(200)], who="ada")
    assert [change.key.name for change in changes] == [f"m{n:03d}" for n in range(200)]
    assert {change.after.metadata.resource_version for change in changes} == {before + 1}
    assert len({change.after.metadata.uid for change in changes}) == 200
    stale = a_model("m007", V1, V2, resource_version=before)
    with pytest.raises(Conflict):
        await catalog.apply([a_model("new"), stale], who="ada")
    with pytest.raises(NotFound):
        await catalog.get(ObjectKey("Model", "default", "new"))


async def test_a_dry_run_tells_the_changes_and_writes_nothing(catalog, store):
    await catalog.apply([a_model("old")], who="ada")
    before = (await store.list(b"")).revision
    documents = [a_model("new"), a_model("old"), a_model("old2", V1, V2)]
    changes = await catalog.apply(documents, who="ada", dry_run=True)
    assert [change.action for change in changes] == ["created", "unchanged", "created"]
    assert (await store.list(b"")).revision == before


async def test_a_stale_resource_version_is_a_conflict_naming_both(catalog):
    (first,) = await catalog.apply([a_model()], who="ada")
    (second,) = await catalog.apply([a_model("iris", V1, V2)], who="bob")
    stale, fresh = first.after.metadata.resource_version, second.after.metadata.resource_version
    with pytest.raises(Conflict) as caught:
        await catalog.apply([a_model(resource_version=stale)], who="ada")
    assert str(stale) in caught.value.message
    assert str(fresh) in caught.value.message
    (third,) = await catalog.apply([a_model("iris", V2, resource_version=fresh)], who="ada")
    assert third.generation == 3


async def test_a_resource_version_of_a_missing_object_is_a_conflict(catalog):
    with pytest.raises(Conflict, match="does not exist"):
        await catalog.apply([a_model(resource_version=5)], who="ada")


async def test_resource_version_0_stands_for_an_object_that_must_not_exist(catalog):
    (change,) = await catalog.apply([a_model(resource_version=0)], who="ada")
    assert change.action == "created"
    with pytest.raises(Conflict):
        await catalog.apply([a_model("iris", V1, V2, resource_version=0)], who="ada")


async def test_the_status_does_not_make_a_resource_version_stale(catalog):
    (change,) = await catalog.apply([a_model()], who="ada")
    await catalog.put_status(IRIS, ModelStatus(message="seen"))
    seen = change.after.metadata.resource_version
    assert (await catalog.get(IRIS)).metadata.resource_version == seen
    await catalog.apply([a_model("iris", V1, V2, resource_version=seen)], who="ada")


async def test_one_object_twice_in_an_apply_is_refused(catalog):
    with pytest.raises(InvalidInput, match="more than once"):
        await catalog.apply([a_model(), a_model("other"), a_model("iris", V2)], who="ada")
    assert (await catalog.list("Model"))[1] == ()


async def test_all_problems_of_all_documents_are_told_at_once(catalog):
    bad = a_model("one", scaling=Scaling(min=9, max=2))
    worse = a_model("two", aliases={"stable": "v7"})
    with pytest.raises(InvalidInput) as caught:
        await catalog.apply([bad, worse, a_model("fine")], who="ada")
    paths = [path for path, _ in caught.value.problems]
    assert paths == ["model/one $.spec.scaling.min", "model/two $.spec.aliases.stable"]
    assert "1 more problem" in caught.value.message


async def test_a_single_document_is_told_its_own_paths(catalog):
    with pytest.raises(InvalidInput) as caught:
        await catalog.apply([a_model("one", scaling=Scaling(min=9, max=2))], who="ada")
    assert caught.value.problems[0][0] == "$.spec.scaling.min"


async def test_a_version_that_keeps_its_name_cannot_change(catalog):
    await catalog.apply([a_model()], who="ada")
    other = msgspec.structs.replace(V1, uri="file:///models/other.onnx")
    with pytest.raises(Conflict) as caught:
        await catalog.apply([a_model("iris", other)], who="ada")
    assert caught.value.reason == "version_immutable"
    assert "v1" in caught.value.message
    assert (await catalog.get(IRIS)).spec.versions == (V1,)


async def test_text_that_is_not_unicode_is_the_callers_mistake(catalog):
    model = msgspec.structs.replace(a_model(), metadata=Meta(name="iris", annotations={"a": "\ud800"}))
    with pytest.raises(InvalidInput):
        await catalog.apply([model], who="ada")


async def test_deleting_removes_object_and_status_and_recreation_counts_on(catalog):
    (created,) = await catalog.apply([a_model()], who="ada")
    await catalog.put_status(IRIS, ModelStatus(message="old"))
    gone = await catalog.delete(IRIS, who="ada")
    assert (gone.action, gone.generation, gone.after) == ("deleted", 2, None)
    assert gone.before.status.message == "old"
    with pytest.raises(NotFound):
        await catalog.get(IRIS)
    (again,) = await catalog.apply([a_model()], who="ada")
    assert (again.action, again.generation, again.after.status) == ("created", 3, None)
    assert again.after.metadata.uid != created.after.metadata.uid
    assert await catalog.get(IRIS) == again.after
    assert (await catalog.delete(IRIS, who="ada")).generation == 4


async def test_deleting_what_is_not_there_or_has_changed_is_refused(catalog):
    (first,) = await catalog.apply([a_model()], who="ada")
    await catalog.apply([a_model("iris", V1, V2)], who="ada")
    with pytest.raises(Conflict):
        await catalog.delete(IRIS, who="ada", resource_version=first.after.metadata.resource_version)
    with pytest.raises(NotFound) as caught:
        await catalog.delete(ObjectKey("Model", "default", "iriss"), who="ada")
    assert caught.value.nearest == ("iris",)


async def test_concurrent_applies_of_one_object_are_all_counted(catalog):
    async def one(number: int) -> int:
        return (await catalog.apply([a_model(max_queue=number + 1)], who=f"w{number}"))[0].generation

    generations = await asyncio.gather(*(one(number) for number in range(6)))
    assert sorted(generations) == [1, 2, 3, 4, 5, 6]
    assert [entry.generation for entry in await catalog.history(IRIS)] == [1, 2, 3, 4, 5, 6]


async def test_a_race_that_is_always_lost_ends_in_a_conflict(store, clock, catalog):
    numbers = iter(range(1, 1000))

    async def overtake() -> None:
        await catalog.apply([a_model(max_queue=next(numbers))], who="bob")

    unlucky = Catalog(OvertakenStore(store, apply_all=overtake), clock)
    with pytest.raises(Conflict, match="model/iris is being changed") as caught:
        await unlucky.apply([a_model("iris", V1, V2)], who="ada")
    assert not isinstance(caught.value, StoreConflict)
    assert (await catalog.get(IRIS)).spec.versions == (V1,)
