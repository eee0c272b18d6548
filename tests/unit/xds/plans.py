"""Plans for tests."""

from __future__ import annotations

from msm.planning.routing import Endpoint, MirrorPlan, ServicePlan, VersionRoute
from msm.resources.meta import ObjectKey
from msm.resources.serving import SplitEntry, VersionKey


def plan(copies: dict[str, int], split: dict[str, int] | None = None, **more) -> ServicePlan:
    """A plan of service "iris" whose versions have that many ready copies."""
    mirror = more.pop("mirror", None)
    return ServicePlan(
        service=more.pop("service", "iris"),
        key=ObjectKey("Model", more.pop("namespace", "default"), "iris"),
        revision=more.pop("revision", 3),
        versions=tuple(
            VersionRoute(
                VersionKey("default", "iris", version),
                tuple(Endpoint(f"w{i}", f"/run/w{i}.sock") for i in range(count)),
            )
            for version, count in copies.items()
        ),
        split=tuple(SplitEntry(version=v, weight=w) for v, w in (split or {next(iter(copies)): 100}).items()),
        mirror=MirrorPlan(*mirror) if mirror else None,
        **more,
    )
