"""From declarations and findings to what residency decisions want to know of each version."""

from __future__ import annotations

from msm.node.guilt import Guilt
from msm.node.versions import Versions
from msm.planning.picture import Wanted
from msm.planning.routing import desired_split, effective_split
from msm.resources.serving import Model, VersionKey


def takes_traffic(model: Model) -> set[str]:
    """Versions that must have their minimum of copies: those of the split in force, of the declared one, the mirror."""
    names = {entry.version for entry in effective_split(model).split}
    names |= {entry.version for entry in desired_split(model)}
    mirror = model.spec.traffic.mirror
    if mirror is not None and mirror.percent:
        names.add(mirror.version)
    return names


def wishes(model: Model, versions: Versions, guilt: Guilt, now: float) -> dict[VersionKey, Wanted]:
    """What is wanted of each version of a model.

    The declared minimum holds for versions that take traffic; the others are loaded when somebody asks for them.
    """
    scaling = model.spec.scaling
    serving = takes_traffic(model) if scaling.min else set()
    found: dict[VersionKey, Wanted] = {}
    for spec in model.spec.versions:
        key = VersionKey(model.metadata.namespace, model.metadata.name, spec.name)
        status = versions.status(key)
        verdict = guilt.verdict(key, now)
        found[key] = Wanted(
            key=key,
            minimum=scaling.min if spec.name in serving else 0,
            maximum=max(scaling.max, scaling.min),
            idle_seconds=scaling.idle_seconds,
            memory_bytes=status.memory_bytes if status else None,
            valid=status is not None and status.phase == "Valid",
            isolated=verdict.isolated,
            blocked_until=verdict.blocked_until,
            blocked_why=verdict.reason if verdict.blocked_until is not None else "",
            runtime=versions.runtime_of(key, spec),
        )
    return found
