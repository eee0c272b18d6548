"""`accelerate: auto`: has a valid version converted and compared in probation, and keeps the file that is to serve.

Whatever goes wrong here is a reason why the original serves; it never makes a version fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from msm.kit.errors import LoadFailed
from msm.node.artifacts import Artifact, Artifacts
from msm.node.config import NodeSettings
from msm.node.probation import Converted, Probation
from msm.resources.serving import Acceleration, VersionSpec, VersionStatus

FILE: Final = "model.onnx"


class Accelerator:
    """Decides nothing: the verdict is the probation process's, and the cost is measured there as for any version."""

    def __init__(self, settings: NodeSettings, artifacts: Artifacts, probation: Probation) -> None:
        self._settings = settings
        self._artifacts = artifacts
        self._probation = probation

    async def examine(self, spec: VersionSpec, artifact: Artifact, status: VersionStatus) -> VersionStatus:
        """The finding about a valid version with what became of its acceleration; if that is used, its cost.

        Raises Unavailable when the probation process is away.
        """
        known = msgspec.structs.replace(spec, format=status.format, signature=status.signature)
        try:
            async with self._artifacts.place() as place:
                made = await self._probation.accelerate(
                    str(artifact.path), known, str(place / FILE), self._settings.probe_timeout_s
                )
                if not made.used:
                    return _with(status, _told(made, None))
                converted = await self._artifacts.keep(place, FILE)
            cost = await self._probation.probe(
                str(artifact.path), known, self._settings.probe_timeout_s, accelerated=str(converted.path)
            )
        except LoadFailed as error:
            return _with(status, Acceleration(used=False, reason=error.message))
        return msgspec.structs.replace(
            _with(status, _told(made, converted.digest)),
            memory_bytes=cost.memory_bytes,
            load_seconds=cost.load_seconds,
            predict_seconds=cost.predict_seconds,
        )

    async def path_of(self, status: VersionStatus) -> Path | None:
        """Where the converted model lies that serves for a version; None when the cache has lost it."""
        acceleration = status.acceleration
        if acceleration is None or acceleration.digest is None:
            return None
        return await self._artifacts.held(acceleration.digest, FILE)


def is_accelerated(status: VersionStatus | None) -> bool:
    """Whether a converted model serves for the version."""
    return status is not None and status.acceleration is not None and status.acceleration.used


def library_format(status: VersionStatus) -> str | None:
    """The format whose libraries a worker needs to hold the version."""
    return "onnx" if is_accelerated(status) else status.format


def _with(status: VersionStatus, acceleration: Acceleration) -> VersionStatus:
    return msgspec.structs.replace(status, acceleration=acceleration)


def _told(made: Converted, digest: str | None) -> Acceleration:
    return Acceleration(
        used=made.used,
        reason=made.reason,
        way=made.way,
        digest=digest,
        rtol=made.rtol,
        atol=made.atol,
        largest_difference=made.largest_difference,
        inputs=made.inputs,
        speed_one=made.speed_one,
        speed_batch=made.speed_batch,
    )
