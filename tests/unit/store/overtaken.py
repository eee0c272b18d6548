"""A store before which somebody else comes first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msm.store import Store


class OvertakenStore:
    """Passes every call on; before the named ones it lets another party act."""

    def __init__(self, store: Store, **overtakers: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._overtakers = overtakers

    def __getattr__(self, name):
        call = getattr(self._store, name)
        overtake = self._overtakers.get(name)
        if overtake is None:
            return call

        async def overtaken(*args, **options):
            await overtake()
            return await call(*args, **options)

        return overtaken
