"""Durable state: the store protocol, the embedded store, the catalog of resources and the event log on top."""

from msm.store.base import Store, compare_and_set, put_if_absent
from msm.store.catalog import Catalog
from msm.store.errors import (
    Ambiguous,
    Compacted,
    Damaged,
    FutureRevision,
    InvalidTxn,
    LeaseGone,
    NoSpace,
    NotLeader,
    StoreConflict,
    StoreError,
    StoreInUse,
    StoreUnavailable,
    TooLarge,
)
from msm.store.events import EventLog
from msm.store.keys import cost_key
from msm.store.records import CatalogChange, Change, Cost, RevisionEntry
from msm.store.sqlite import MEMORY, SqliteStore

__all__ = [
    "MEMORY",
    "Ambiguous",
    "Catalog",
    "CatalogChange",
    "Change",
    "Compacted",
    "Cost",
    "Damaged",
    "EventLog",
    "FutureRevision",
    "InvalidTxn",
    "LeaseGone",
    "NoSpace",
    "NotLeader",
    "RevisionEntry",
    "SqliteStore",
    "Store",
    "StoreConflict",
    "StoreError",
    "StoreInUse",
    "StoreUnavailable",
    "TooLarge",
    "compare_and_set",
    "cost_key",
    "put_if_absent",
]
