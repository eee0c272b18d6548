"""Structured logs: one JSON object a line on standard error, or coloured text on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_logs(*, json: bool, level: int = logging.INFO) -> None:
    """Set up logging for this process; called once by the composition root."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> Any:
    """A logger whose records carry `part=name`."""
    return structlog.get_logger(part=name)
