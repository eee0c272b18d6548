"""Turns what the node decides and sees into events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msm.kit.clock import Clock
from msm.observe.events import Event, Severity


class Journal:
    """Writes events through `emit`, which must not block."""

    def __init__(self, emit: Callable[[Event], None], clock: Clock) -> None:
        self._emit = emit
        self._clock = clock

    def note(
        self,
        subject: str,
        reason: str,
        message: str,
        *,
        severity: Severity = "info",
        data: dict[str, Any] | None = None,
    ) -> None:
        """One decision or observation (see `Event`)."""
        event = Event(
            at=self._clock.wall(),
            subject=subject,
            reason=reason,
            message=message,
            source="node",
            severity=severity,
            data=data or {},
        )
        self._emit(event)
