"""What residency would do if a model were declared: the same decision, asked about a picture that is not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from msm.planning.moves import Dedicate, Load, Open, Retire, Unload
from msm.planning.picture import Picture, Wanted
from msm.planning.residency import plan
from msm.planning.room import mib
from msm.resources.observed import Reason
from msm.resources.serving import VersionKey


def preview(picture: Picture, wishes: Mapping[VersionKey, Wanted], now: float) -> tuple[Reason, ...]:
    """Loads, evictions, what could not be had, and the memory at its peak, one sentence each.

    A version that was never measured is said to be tried first: what it costs is not known before.
    """
    supposed = replace(picture, wanted={**picture.wanted, **wishes}, attention=sorted(wishes))
    decision = plan(supposed, now)
    reasons: list[Reason] = []
    peak = picture.used_bytes
    for move in decision.moves:
        match move:
            case Load():
                peak += move.memory_bytes
                text = f"{move.key} would be loaded into worker {move.worker} ({mib(move.memory_bytes)}): {move.reason}"
                reasons.append(Reason(about="Load", message=text, data=dict(move.data)))
            case Unload():
                text = f"{move.key} would be unloaded from worker {move.worker}: {move.reason}"
                reasons.append(Reason(about="Unload", message=text, data=dict(move.data)))
            case Dedicate():
                reasons.append(Reason(about="Dedicate", message=f"{move.key}: {move.reason}"))
            case Open():
                text = f"the servers of runtime {move.runtime} would be started: {move.reason}"
                reasons.append(Reason(about="Open", message=text))
            case Retire():
                reasons.append(Reason(about="Retire", message=f"worker {move.worker}: {move.reason}"))
    for rejection in decision.rejected:
        if rejection.cause == "not_valid":
            text = f"{rejection.key} would be fetched and tried first: its memory is not known yet"
            reasons.append(Reason(about="Probe", message=text))
        else:
            text = f"{rejection.key} would not be loaded: {rejection.message}"
            reasons.append(Reason(about=rejection.cause, message=text, data=dict(rejection.data)))
    summary = f"memory of models at its peak: {mib(peak)} of {mib(picture.capacity_bytes)}"
    data = {"peak_bytes": peak, "capacity_bytes": picture.capacity_bytes}
    return (*reasons, Reason(about="Memory", message=summary, data=data))
