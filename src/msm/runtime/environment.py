"""What model libraries read from the environment when they are first imported. Set it before any of them is."""

from __future__ import annotations

import os
from typing import Final

POOLS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SILENT: Final = {
    # Libraries that report to their makers, or fetch what is missing, would do it from the machine that serves.
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    # A thread of the allocator would be lost by a fork.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


def set_up(*, threads: str | None = None) -> None:
    """One thread of computation for each call, since a node has a worker for each core, and no calls to the outside.

    `threads` None keeps what the environment says of thread pools.
    """
    for name in POOLS:
        if threads is None:
            os.environ.setdefault(name, "1")
        else:
            os.environ[name] = threads
    os.environ.update(SILENT)
