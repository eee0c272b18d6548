"""Why a model's versions are where they are, in sentences with numbers."""

from __future__ import annotations

from msm.node.residents import Residents
from msm.node.versions import Versions
from msm.planning.room import idle_for, mib
from msm.resources.observed import Explanation, Reason
from msm.resources.serving import Model, VersionKey


def explain_model(model: Model, residents: Residents, versions: Versions, now: float) -> Explanation:
    """State, decisions (newest first) and what was rejected, for all versions of a model."""
    keys = [VersionKey(model.metadata.namespace, model.metadata.name, version.name) for version in model.spec.versions]
    reasons: list[Reason] = []
    rejected: list[Reason] = []
    for key in keys:
        reasons += [*_finding(key, versions), *_copies(key, residents, now), *residents.decisions.reasons(key)]
        rejection = residents.decisions.rejection(key)
        if rejection is not None:
            rejected.append(
                Reason(about=rejection.cause, message=f"{key}: {rejection.message}", data=dict(rejection.data))
            )
    state = "; ".join(_state(key, residents, versions) for key in keys)
    return Explanation(subject=str(model.key), state=state, reasons=tuple(reasons), rejected=tuple(rejected))


def _state(key: VersionKey, residents: Residents, versions: Versions) -> str:
    copies = residents.copies.of(key)
    if copies:
        states = ", ".join(f"{copy.state} in {copy.worker}" for copy in copies)
        return f"{key.version}: {states}"
    status = versions.status(key)
    phase = status.phase if status else "Pending"
    return f"{key.version}: {'cold' if phase == 'Valid' else phase}"


def _finding(key: VersionKey, versions: Versions) -> list[Reason]:
    status = versions.status(key)
    if status is None:
        return [Reason(about="Pending", message=f"{key} waits for its fetch and trial")]
    if status.phase == "Failed":
        return [Reason(about="Failed", message=f"{key}: {status.message}", data={"reason": status.reason})]
    if status.phase != "Valid":
        return [Reason(about=status.phase, message=f"{key}: {versions.fetched_bytes(key) or 0} bytes fetched")]
    memory = mib(status.memory_bytes or 0)
    message = f"{key} costs {memory} and loads in {status.load_seconds or 0.0:.2f} s, as measured"
    if status.load_seconds is None:
        message = f"{key} is taken to cost {memory} until its first load is measured"
    data = {"memory_bytes": status.memory_bytes, "load_seconds": status.load_seconds, "digest": status.digest}
    return [Reason(about="Valid", message=message, data=data)]


def _copies(key: VersionKey, residents: Residents, now: float) -> list[Reason]:
    found: list[Reason] = []
    for copy in residents.copies.of(key):
        details = residents.copies.details(copy)
        message = f"{key} is {copy.state} in worker {copy.worker}: {details.reason}"
        data = {"memory_bytes": copy.memory_bytes, "in_flight": copy.in_flight, "requests": details.requests}
        if copy.state == "Ready":
            data["idle_s"] = round(idle_for(copy, now))
        found.append(Reason(about=copy.state, message=message, data=data))
    return found
