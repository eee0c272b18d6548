"""The embedded store: one SQLite database, owned by one process."""

from msm.store.sqlite.store import MEMORY, SqliteStore

__all__ = ["MEMORY", "SqliteStore"]
