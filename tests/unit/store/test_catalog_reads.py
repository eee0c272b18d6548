"""What readers of the catalog see: objects with status, lists, watches, costs."""

from __future__ import annotations

import asyncio

import pytest

from msm.kit.errors import NotFound
from msm.resources.meta import Meta, ObjectKey
from msm.resources.serving import Model, ModelSpec, ModelStatus, Signature, VersionSpec, VersionStatus
from msm.store import Catalog, Cost, Damaged, cost_key
from msm.store.keys import STATUS, res_key
from msm.store.values import Put, Txn
from tests.unit.store.overtaken import OvertakenStore

IRIS = ObjectKey("Model", "default", "iris")
VALID = ModelStatus(observed_generation=1, versions={"v1": VersionStatus(phase="Valid", memory_bytes=7)})
DIGEST = "sha256:" + "a" * 64


def a_model(name: str = "iris", namespace: str = "default", **spec) -> Model:
    versions = (VersionSpec(name="v1", uri=f"file:///models/{name}.onnx"),)
    return Model(metadata=Meta(name=name, namespace=namespace), spec=ModelSpec(versions=versions, **spec))


async def changes(watch, count: int) -> list:
    found: list = []
    async with asyncio.timeout(10.0):
        while len(found) < count:
            found += await anext(watch)
    return found


async def test_an_unknown_object_is_not_found_with_near_names(catalog):
    await catalog.apply([a_model("iris"), a_model("wine"), a_model("iris-2")], who="ada")
    with pytest.raises(NotFound, match="did you mean 'iris'") as caught:
        await catalog.get(ObjectKey("Model", "default", "irs"))
    assert caught.value.nearest[0] == "iris"
    with pytest.raises(NotFound) as caught:
        await catalog.get(ObjectKey("Model", "team", "iris"))
    assert caught.value.nearest == ()


async def test_a_list_is_ordered_has_the_status_and_one_revision(catalog, store):
    documents = [a_model("b", "team"), a_model("a"), a_model("c"), a_model("a", "team-2")]
    await catalog.apply(documents, who="ada")
    await catalog.put_status(ObjectKey("Model", "default", "c"), VALID)
    revision, models = await catalog.list("Model")
    assert [str(model.key) for model in models] == ["model/a", "model/c", "model/team-2/a", "model/team/b"]
    assert [model.status for model in models] == [None, VALID, None, None]
    assert revision == (await store.list(b"")).revision
    assert [model.key.name for model in (await catalog.list("Model", "team"))[1]] == ["b"]
    assert (await catalog.list("Model", "nobody"))[1] == ()


async def test_a_list_over_many_pages_is_one_snapshot(store, clock, catalog):
    await catalog.apply([a_model(f"m{n:04d}") for n in range(1200)], who="ada")
    numbers = iter(range(1, 1000))

    async def overtake() -> None:
        number = next(numbers)
        await catalog.apply([a_model("m1100", max_queue=number)], who="bob")
        await catalog.put_status(ObjectKey("Model", "default", "m1100"), ModelStatus(observed_generation=number))

    _, models = await Catalog(OvertakenStore(store, list=overtake), clock).list("Model")
    assert next(numbers) > 4
    assert len(models) == 1200
    (moving,) = [model for model in models if model.metadata.name == "m1100"]
    assert (moving.spec.max_queue, moving.status.observed_generation) == (1, 1)


async def test_status_is_written_once_and_only_for_objects(catalog, store):
    await catalog.apply([a_model()], who="ada")
    assert await catalog.put_status(IRIS, VALID)
    before = (await store.list(b"")).revision
    assert not await catalog.put_status(IRIS, VALID)
    assert (await store.list(b"")).revision == before
    assert (await catalog.get(IRIS)).status == VALID
    with pytest.raises(NotFound):
        await catalog.put_status(ObjectKey("Model", "default", "none"), VALID)


async def test_no_status_is_left_for_an_object_deleted_meanwhile(store, clock, catalog):
    await catalog.apply([a_model()], who="ada")

    async def overtake() -> None:
        await catalog.delete(IRIS, who="bob")

    with pytest.raises(NotFound):
        await Catalog(OvertakenStore(store, txn=overtake), clock).put_status(IRIS, VALID)
    assert (await store.list(STATUS)).items == ()


async def test_a_watch_tells_declarations_status_and_deletions(catalog):
    (created,) = await catalog.apply([a_model()], who="ada")
    start = created.after.metadata.resource_version
    watch = catalog.watch(start)
    (first,) = await changes(watch, 1)
    assert (first.key, first.resource, first.revision) == (IRIS, created.after, start)
    await catalog.put_status(IRIS, VALID)
    (second,) = await changes(watch, 1)
    assert second.resource.status == VALID
    assert second.resource.spec == created.after.spec
    gone = asyncio.create_task(changes(watch, 1))
    await catalog.delete(IRIS, who="ada")
    (third,) = await gone
    assert (third.key, third.resource) == (IRIS, None)
    assert first.revision < second.revision < third.revision


async def test_a_watch_tells_each_object_of_an_apply_once(catalog):
    documents = [a_model(f"m{n:03d}") for n in range(300)]
    (first, *_) = await catalog.apply(documents, who="ada")
    found = await changes(catalog.watch(first.after.metadata.resource_version), 300)
    assert sorted(change.key.name for change in found) == [f"m{n:03d}" for n in range(300)]


async def test_a_watch_of_the_past_never_tells_an_older_state_after_a_newer(catalog):
    (created,) = await catalog.apply([a_model()], who="ada")
    for generation in range(1, 30):
        await catalog.put_status(IRIS, ModelStatus(observed_generation=generation))
        await catalog.apply([a_model(max_queue=generation)], who="ada")
    watch = catalog.watch(created.after.metadata.resource_version)
    told = await changes(watch, 1)
    seen = [(c.resource.metadata.generation, c.resource.status.observed_generation) for c in told]
    assert seen == sorted(seen)
    assert seen[-1] == (30, 29)


async def test_a_watch_says_nothing_of_other_records(catalog):
    revision = (await catalog.list("Model"))[0]
    watch = catalog.watch(revision + 1)
    waiting = asyncio.create_task(changes(watch, 1))
    await catalog.put_cost(DIGEST, Cost(memory_bytes=1, load_seconds=0.1, format="onnx"))
    await catalog.apply([a_model()], who="ada")
    assert [change.key for change in await waiting] == [IRIS]


async def test_costs_are_kept_by_digest_and_format(catalog, store):
    onnx = Cost(memory_bytes=10, load_seconds=0.1, predict_seconds=0.01, format="onnx", signature=Signature())
    sklearn = Cost(memory_bytes=20, load_seconds=0.2, format="sklearn", size_bytes=5)
    assert await catalog.put_cost(DIGEST, onnx)
    assert await catalog.put_cost(DIGEST, sklearn)
    assert not await catalog.put_cost(DIGEST, sklearn)
    assert await catalog.costs() == {cost_key(DIGEST, "onnx"): onnx, cost_key(DIGEST, "sklearn"): sklearn}


async def test_a_record_that_cannot_be_read_is_damage_not_a_crash(catalog, store):
    await store.txn(Txn(ops=(Put(res_key(IRIS), b"j{not json"),)))
    with pytest.raises(Damaged):
        await catalog.get(IRIS)
