"""What a write to the catalog means, decided without touching the store.

`plan_*` take what was read (`Seen`) and what is wanted and give a `Plan`: the change to report and the compares and
operations that make it, guarded by what was read. A lost race is planned anew from what is then there.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from msm.kit.errors import Conflict, InvalidInput, NotFound
from msm.resources.meta import Meta, ObjectKey
from msm.resources.runtimes import ServingRuntime, runtime_keys
from msm.resources.serving import Model, Resource
from msm.resources.validate import check, check_change
from msm.store.keys import gone_key, res_key, rev_key, status_key
from msm.store.records import (
    GONE,
    RESOURCE,
    REVISION,
    Change,
    ChangeAction,
    GoneRecord,
    RevisionAction,
    RevisionEntry,
    RevisionRecord,
)
from msm.store.values import Compare, Delete, Op, Put, Txn, absent, present, unchanged

SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store holds under one object's name: `mod_revision` 0 and no resource when there is none.

    `generation` is the last number given, 0 when the name was never used.
    """

    mod_revision: int
    resource: Resource | None
    generation: int


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes, when (`at` for the record, `at_text` for the object), under which operation id."""

    who: str
    at: float
    at_text: str
    op: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The change of one object and the part of the transaction that makes it; unchanged objects have none."""

    change: Change
    compares: tuple[Compare, ...] = ()
    ops: tuple[Op, ...] = ()


def txn_of(plans: Sequence[Plan], guards: Sequence[Compare] = ()) -> Txn:
    """All plans as one transaction, on the further conditions `guards`."""
    return Txn(
        (*(compare for plan in plans for compare in plan.compares), *guards),
        tuple(op for plan in plans for op in plan.ops),
    )


def check_resources(resources: Sequence[Resource]) -> None:
    """Raise InvalidInput with every broken rule of every document, also for one object given twice."""
    problems: list[tuple[str, str]] = []
    known: set[ObjectKey] = set()
    for resource in resources:
        key = resource.key
        place = f"{key} " if len(resources) > 1 else ""
        if key in known:
            problems.append((f"{place}$.metadata.name", f"{key} is given more than once; once is enough"))
        known.add(key)
        problems += [(place + path, sentence) for path, sentence in check(resource)]
    if problems:
        raise InvalidInput(_summary(problems), problems=problems)


def _summary(problems: Sequence[tuple[str, str]]) -> str:
    path, sentence = problems[0]
    more = len(problems) - 1
    tail = "" if not more else f" (and {more} more problem{'s' if more > 1 else ''})"
    return f"{path}: {sentence}{tail}"


def needed_runtimes(plans: Sequence[Plan]) -> dict[ObjectKey, tuple[ObjectKey, ...]]:
    """The runtimes that the written models name: by the first place to look at, every place in order.

    What a plan leaves unchanged was checked when it was written.
    """
    needed: dict[ObjectKey, tuple[ObjectKey, ...]] = {}
    for plan in plans:
        model = plan.change.after
        if isinstance(model, Model) and plan.ops:
            for version in model.spec.versions:
                if version.runtime is not None:
                    places = runtime_keys(model.metadata.namespace, version.runtime)
                    needed[places[0]] = places
    return needed


def check_runtimes(
    plans: Sequence[Plan], needed: Mapping[ObjectKey, tuple[ObjectKey, ...]], stored: Mapping[ObjectKey, int]
) -> tuple[Compare, ...]:
    """Conditions that keep the runtimes there until the models are written. `stored` has their revisions.

    Raises InvalidInput for a runtime that is neither stored nor declared by the same plans.
    """
    declared = {plan.change.key for plan in plans if isinstance(plan.change.after, ServingRuntime)}
    compares: dict[ObjectKey, Compare] = {}
    problems = []
    for first, places in needed.items():
        if any(place in declared for place in places):
            continue
        found = next((place for place in places if stored.get(place)), None)
        if found is None:
            problems.append(
                ("$.spec.versions[].runtime", f"there is no ServingRuntime {first.name!r}; declare it first")
            )
        else:
            compares[found] = present(res_key(found))
    if problems:
        raise InvalidInput(_summary(problems), problems=problems)
    return tuple(compares.values())


def users_of(key: ObjectKey, models: Sequence[Resource]) -> list[str]:
    """The models that a runtime is found for under `key`."""
    return [
        str(model.key)
        for model in models
        if isinstance(model, Model)
        and any(
            version.runtime == key.name and key in runtime_keys(model.metadata.namespace, key.name)
            for version in model.spec.versions
        )
    ]


def plan_apply(resources: Sequence[Resource], seen: Mapping[ObjectKey, Seen], author: Author) -> list[Plan]:
    """Plans in the order of the documents. Raises Conflict for a stale resource version or a changed version."""
    return [plan_write(resource, seen[resource.key], author) for resource in resources]


def plan_write(
    wanted: Resource,
    seen: Seen,
    author: Author,
    *,
    action: RevisionAction | None = None,
    restored: int | None = None,
) -> Plan:
    """Make the object what `wanted` declares. `action` names the entry in the history when it is a special one."""
    key = wanted.key
    check_seen(key, wanted.metadata.resource_version, seen)
    if seen.resource is not None and same_content(seen.resource, wanted):
        return Plan(Change(key, "unchanged", seen.generation, seen.resource, seen.resource))
    if seen.resource is not None:
        _check_immutable(key, seen.resource, wanted)
    generation = seen.generation + 1
    metadata = _metadata(wanted.metadata, seen.resource, generation, author)
    after: Resource = msgspec.structs.replace(wanted, metadata=metadata)
    if isinstance(after, Model):
        after = msgspec.structs.replace(after, status=None)
    made: ChangeAction = "created" if seen.resource is None else "updated"
    record = RevisionRecord(
        generation=generation,
        at=author.at,
        who=author.who,
        action=action or ("created" if seen.resource is None else "updated"),
        op=author.op,
        resource=after,
        restored=restored,
    )
    ops: tuple[Op, ...] = (
        Put(res_key(key), RESOURCE.encode(after)),
        Put(rev_key(key, generation), REVISION.encode(record)),
    )
    told = after
    if isinstance(after, Model) and seen.resource is not None:
        told = msgspec.structs.replace(after, status=seen.resource.status)
    return Plan(Change(key, made, generation, seen.resource, told), _guards(key, seen, generation), ops)


def plan_delete(key: ObjectKey, seen: Seen, author: Author) -> Plan:
    """Remove the object and its status; the deletion is an entry of its history. `seen` must have a resource."""
    generation = seen.generation + 1
    record = RevisionRecord(generation=generation, at=author.at, who=author.who, action="deleted", op=author.op)
    ops = (
        Delete(res_key(key)),
        Delete(status_key(key)),
        Put(rev_key(key, generation), REVISION.encode(record)),
        Put(gone_key(key), GONE.encode(GoneRecord(generation=generation))),
    )
    return Plan(Change(key, "deleted", generation, seen.resource, None), _guards(key, seen, generation), ops)


def plan_rollback(key: ObjectKey, to: int | None, history: Sequence[RevisionEntry], seen: Seen, author: Author) -> Plan:
    """A new generation with the content of generation `to`, or of the newest earlier one that differs.

    Nothing is written when `to` is named and declares what there is: asking twice is asking once.
    """
    entry = _wanted_entry(key, to, history, seen)
    assert entry.resource is not None, "deletions are never chosen"
    meta = msgspec.structs.replace(entry.resource.metadata, resource_version=None)
    wanted = msgspec.structs.replace(entry.resource, metadata=meta)
    check_resources((wanted,))
    return plan_write(wanted, seen, author, action="rolled_back", restored=entry.generation)


def _wanted_entry(key: ObjectKey, to: int | None, history: Sequence[RevisionEntry], seen: Seen) -> RevisionEntry:
    differing = [
        entry
        for entry in history
        if entry.resource is not None and not (seen.resource and same_content(seen.resource, entry.resource))
    ]
    if to is None:
        if not differing:
            raise Conflict(
                f"{key} has no earlier generation that differs from the present one",
                reason="nothing_to_roll_back",
            )
        return differing[-1]
    return find_generation(key, to, history)


def find_generation(key: ObjectKey, generation: int, history: Sequence[RevisionEntry]) -> RevisionEntry:
    """The entry of that number; raises NotFound when there is none or it is a deletion."""
    entry = next((entry for entry in history if entry.generation == generation), None)
    if entry is None:
        last = history[-1].generation if history else 0
        raise NotFound(f"{key} has no generation {generation}; its generations go from 1 to {last}")
    if entry.resource is None:
        raise NotFound(f"generation {generation} of {key} is its deletion and holds no content")
    return entry


def same_content(one: Resource, other: Resource) -> bool:
    """Whether a person declared the same: spec, labels and annotations."""
    return (
        one.spec == other.spec
        and one.metadata.labels == other.metadata.labels
        and one.metadata.annotations == other.metadata.annotations
    )


def check_seen(key: ObjectKey, wanted: int | None, seen: Seen) -> None:
    """Raise Conflict unless the caller saw the object as it is; 0 stands for one that must not exist yet."""
    if wanted is None or wanted == seen.mod_revision:
        return
    if not seen.mod_revision:
        raise Conflict(f"{key} was changed from resourceVersion {wanted}, but it does not exist")
    raise Conflict(
        f"{key} was changed from resourceVersion {wanted}, but it is at {seen.mod_revision} now: "
        "read it again and repeat the change"
    )


def _check_immutable(key: ObjectKey, old: Resource, new: Resource) -> None:
    problems = check_change(old, new)
    if problems:
        told = "; ".join(sentence for _, sentence in problems[:SHOWN_PROBLEMS])
        raise Conflict(f"{key}: {told}", reason="version_immutable")


def _metadata(wanted: Meta, old: Resource | None, generation: int, author: Author) -> Meta:
    return Meta(
        name=wanted.name,
        namespace=wanted.namespace,
        labels=wanted.labels,
        annotations=wanted.annotations,
        generation=generation,
        uid=old.metadata.uid if old else _uid(author.op, wanted),
        created_at=old.metadata.created_at if old else author.at_text,
    )


def _uid(op: str, meta: Meta) -> str:
    return uuid.uuid5(uuid.UUID(op), f"{meta.namespace}/{meta.name}").hex


def _guards(key: ObjectKey, seen: Seen, generation: int) -> tuple[Compare, ...]:
    return (unchanged(res_key(key), seen.mod_revision), absent(rev_key(key, generation)))
