"""The file by which the next node process finds the workers that this one started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from msm.observe.logs import get_logger

log = get_logger("workers")


class WorkerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker process: its number and start time name it exactly; `dedicated` is the only version it may hold,
    `runtime` the ServingRuntime ("namespace/name") whose server it drives."""

    id: str
    pid: int
    start_ticks: int
    dedicated: str | None = None
    runtime: str | None = None


def read_records(path: Path) -> tuple[WorkerRecord, ...]:
    """The workers of an earlier node process; none when the file is missing or unreadable."""
    try:
        return tuple(msgspec.json.decode(path.read_bytes(), type=list[WorkerRecord]))
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("the record of the workers cannot be read; none is adopted", error=str(error))
        return ()


def write_records(path: Path, records: Iterable[WorkerRecord]) -> None:
    """Replace the file in one step. It need not survive a power cut: nor do the processes."""
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(msgspec.json.encode(list(records)))
    fresh.replace(path)
