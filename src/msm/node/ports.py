"""What the node needs from its surroundings, as protocols; the composition root supplies the real parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from msm.observe.events import Severity
from msm.resources.meta import ObjectKey
from msm.resources.serving import Model


class Desired(Protocol):
    """What is declared, as this process knows it. Every call answers from memory."""

    def model(self, key: ObjectKey) -> Model | None: ...
    def by_service(self, service: str) -> Model | None: ...
    def models(self) -> Iterable[Model]: ...
    def nearest(self, service: str) -> tuple[str, ...]: ...
    def on_change(self, listener: Callable[[ObjectKey], None]) -> None: ...


class Traffic(Protocol):
    """Brings the node's ready copies into the proxy."""

    async def changed(self, key: ObjectKey) -> None:
        """Recompile the service's routes from `Agent.copies_of`; returns when the proxy has them."""
        ...

    async def workers_changed(self) -> None:
        """The set of living workers changed; returns when the proxy has it."""
        ...


class Journal(Protocol):
    """Where decisions and observations are written down for people; must not block."""

    def note(
        self,
        subject: str,
        reason: str,
        message: str,
        *,
        severity: Severity = "info",
        data: dict[str, Any] | None = None,
    ) -> None: ...
