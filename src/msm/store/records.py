"""The catalog's records: what is written into the store, and what callers get back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from msm.resources.meta import Base, ObjectKey
from msm.resources.serving import Model, ModelStatus, Resource, Signature
from msm.store.codec import Codec

RevisionAction = Literal["created", "updated", "deleted", "rolled_back"]
ChangeAction = Literal["created", "updated", "unchanged", "deleted"]


class RevisionRecord(Base, frozen=True):
    """One accepted change as stored. `op` tells one attempt to write from another, `restored` which generation a
    roll-back brought back."""

    generation: int
    at: float
    who: str
    action: RevisionAction
    op: str
    resource: Resource | None = None
    restored: int | None = None


class GoneRecord(Base, frozen=True):
    """The generation of an object's last deletion, so that a new one of the same name counts on."""

    generation: int


class Cost(Base, frozen=True):
    """What loading and running an artifact was measured to take. Keyed by `msm.store.keys.cost_key`."""

    memory_bytes: int
    load_seconds: float
    predict_seconds: float | None = None
    format: str = ""
    signature: Signature | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RevisionEntry:
    """One line of an object's history: `resource` is the object as it was accepted, None for a deletion."""

    generation: int
    at: float
    who: str
    action: RevisionAction
    resource: Resource | None
    restored: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a write did to one object. `generation` is the one it has now, `before` and `after` carry the status."""

    key: ObjectKey
    action: ChangeAction
    generation: int
    before: Resource | None
    after: Resource | None


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """An object changed: `resource` is how it stands now, None when it is gone, `revision` where to watch on after."""

    key: ObjectKey
    resource: Resource | None
    revision: int


RESOURCE: Codec[Resource] = Codec(Resource)
STATUS: Codec[ModelStatus] = Codec(ModelStatus)
REVISION: Codec[RevisionRecord] = Codec(RevisionRecord)
GONE: Codec[GoneRecord] = Codec(GoneRecord)
COST: Codec[Cost] = Codec(Cost)


def stored_resource(data: bytes, mod_revision: int, status: bytes | None) -> Resource:
    """The object from its record and, if there is one, its status record."""
    found = RESOURCE.decode(data)
    metadata = msgspec.structs.replace(found.metadata, resource_version=mod_revision)
    if not isinstance(found, Model):
        return msgspec.structs.replace(found, metadata=metadata)
    return msgspec.structs.replace(found, metadata=metadata, status=None if status is None else STATUS.decode(status))
