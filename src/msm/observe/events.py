"""The event: one decision or observation that a person can read."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Severity = Literal["info", "warning", "error"]


class Event(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Who saw or decided what about which object, why, and the numbers it saw.

    `subject` is an object as text ("model/iris", "worker/w0"), `reason` a CamelCase word for programs
    ("CopyLoaded"), `message` one sentence for people, `data` the numbers behind it.
    """

    at: float
    subject: str
    reason: str
    message: str
    source: str
    severity: Severity = "info"
    data: dict[str, Any] = msgspec.field(default_factory=dict)
