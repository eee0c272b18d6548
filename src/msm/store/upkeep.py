"""Housekeeping of a store: history that nobody needs any more is forgotten.

The catalog keeps its own numbered history, so the store's revisions serve only watches that lag and lists in pages.
Only one process does this for a store.
"""

from __future__ import annotations

from msm.kit.clock import Clock
from msm.observe.logs import get_logger
from msm.store.base import Store
from msm.store.errors import StoreError
from msm.store.keys import ROOT

EVERY_S = 300.0


async def keep_compact(store: Store, clock: Clock, *, every_s: float = EVERY_S) -> None:
    """Until cancelled: each time `every_s` has passed, forget what was history already the time before.

    So a watch may lag by at least `every_s` before it is told to list anew. Store errors are logged and tried again.
    """
    before = 0
    while True:
        try:
            now = (await store.list(ROOT, limit=1)).revision
            if before:
                await store.compact(before)
            before = now
        except StoreError as failure:
            get_logger("store").warning("store_not_compacted", error=failure.message)
        await clock.sleep(every_s)
