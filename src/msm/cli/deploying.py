"""What `msm deploy` declares: the next form of a model from the present one and what was asked for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from msm.planning.routing import STABLE, desired_split
from msm.resources.meta import Meta, ObjectKey
from msm.resources.serving import Model, ModelSpec, SplitEntry, VersionSpec

_NUMBERED = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person asked for. None and empty leave things as they are."""

    key: ObjectKey
    uri: str
    version: str | None = None
    format: str | None = None
    trusted: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    alias: str | None = None
    least: int | None = None
    most: int | None = None
    traffic: bool = True
    accelerate: Literal["auto", "off"] = "off"


def next_version(spec: ModelSpec | None) -> str:
    """The name after the highest "vN" that is in use; v1 for the first."""
    names = [version.name for version in spec.versions] if spec else []
    return f"v{max((int(found[1]) for name in names if (found := _NUMBERED.fullmatch(name))), default=0) + 1}"


def deployed(present: Model | None, wanted: Wanted) -> tuple[Model, str]:
    """The model to declare, guarded by what was seen of it, and the name of the version in it.

    A new version stands last. With traffic it gets all of it, in the way the model says who gets traffic: a declared
    split, else the alias `stable`, else being the newest. Without traffic the versions that have it keep it: where
    being the newest decided, that is written down as a split.
    """
    name = wanted.version or next_version(present.spec if present else None)
    version = VersionSpec(
        name=name,
        uri=wanted.uri,
        format=wanted.format,
        trusted=wanted.trusted,
        parameters=dict(wanted.parameters),
        accelerate=wanted.accelerate,
    )
    if present is None:
        spec = ModelSpec(versions=(version,))
    else:
        directed = _with_traffic if wanted.traffic else _without_traffic
        spec = directed(present, _with_version(present.spec, version), name)
    spec = _with_bounds(spec, wanted)
    if wanted.alias:
        spec = msgspec.structs.replace(spec, aliases={**spec.aliases, wanted.alias: name})
    # 0 guards against a model that another person makes at the same time.
    made = Meta(name=wanted.key.name, namespace=wanted.key.namespace, resource_version=0)
    metadata = present.metadata if present else made
    metadata = msgspec.structs.replace(metadata, labels={**metadata.labels, **wanted.labels})
    return Model(metadata=metadata, spec=spec), name


def _with_version(spec: ModelSpec, version: VersionSpec) -> ModelSpec:
    known = [other.name for other in spec.versions]
    if version.name not in known:
        return msgspec.structs.replace(spec, versions=(*spec.versions, version))
    # What was found out or declared about it before may stay away from the command line.
    versions = tuple(_kept(other, version) if other.name == version.name else other for other in spec.versions)
    return msgspec.structs.replace(spec, versions=versions)


def _kept(before: VersionSpec, now: VersionSpec) -> VersionSpec:
    return msgspec.structs.replace(
        now, digest=before.digest, signature=before.signature, format=now.format or before.format
    )


def _with_traffic(_present: Model, spec: ModelSpec, name: str) -> ModelSpec:
    """All traffic to version `name`."""
    by_newest = not spec.traffic.split and STABLE not in spec.aliases
    if by_newest and spec.versions[-1].name == name:
        return spec
    if not spec.traffic.split and STABLE in spec.aliases:
        return msgspec.structs.replace(spec, aliases={**spec.aliases, STABLE: name})
    return _with_split(spec, (SplitEntry(version=name, weight=100),))


def _without_traffic(present: Model, spec: ModelSpec, _name: str) -> ModelSpec:
    """The traffic as it was, also where being the newest decided it."""
    before = desired_split(present)
    same = spec.traffic.split or STABLE in spec.aliases or before[0].version == spec.versions[-1].name
    return spec if same else _with_split(spec, before)


def _with_split(spec: ModelSpec, split: tuple[SplitEntry, ...]) -> ModelSpec:
    return msgspec.structs.replace(spec, traffic=msgspec.structs.replace(spec.traffic, split=split))


def _with_bounds(spec: ModelSpec, wanted: Wanted) -> ModelSpec:
    if wanted.least is None and wanted.most is None:
        return spec
    least = spec.scaling.min if wanted.least is None else wanted.least
    most = max(spec.scaling.max, least) if wanted.most is None else wanted.most
    return msgspec.structs.replace(spec, scaling=msgspec.structs.replace(spec.scaling, min=least, max=most))
