"""The errors that a request gets for a version that cannot be had."""

from __future__ import annotations

from msm.kit.errors import LoadFailed, Unavailable
from msm.planning.moves import Rejection
from msm.resources.serving import VersionKey, VersionStatus

FAILED_RETRY_S = 10.0


def failed_version(key: VersionKey, status: VersionStatus) -> LoadFailed:
    """What a request gets for a version that failed its fetch or its trial."""
    message = f"model {key.model} version {key.version} cannot be used: {status.message}"
    error = LoadFailed(message, reason=status.reason)
    error.retry_after_s = FAILED_RETRY_S
    return error


def unavailable(rejection: Rejection, now: float) -> Unavailable:
    """What a request gets for a copy that cannot be had."""
    key = rejection.key
    retry_s = 1.0 if rejection.retry_at is None else max(1.0, rejection.retry_at - now)
    if rejection.cause == "load_failed":
        failed = LoadFailed(f"model {key.model} version {key.version} could not be loaded: {rejection.message}")
        failed.retry_after_s = retry_s
        return failed
    message = f"model {key.model} version {key.version} cannot be served: {rejection.message}"
    return Unavailable(message, reason=rejection.cause, retry_after_s=retry_s)
