"""Logging: one JSON line per event on standard error, with the region name on every line about a subcloud.

JSON escapes line breaks and terminal control characters, which names and details from clouds may contain. No caller
logs a secret, and the `repr` of records and keys shows none.
"""

from __future__ import annotations

import logging
import sys

import structlog

SHARED_PROCESSORS: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(level: str = "INFO") -> None:
    """Sends structlog and the standard library's loggers (including Celery's) through one JSON formatter."""
    structlog.configure(
        processors=[*SHARED_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=SHARED_PROCESSORS,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Celery logs "received" and "succeeded" for every task, and a traceback for every message returned while PostgreSQL
    # is unavailable; dcsync logs one summary line per attempt instead.
    for name in ("celery.worker.strategy", "kombu", "asyncio", "aiohttp.access"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("celery.app.trace").setLevel(max(logging.ERROR, root.level))


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Returns the logger of one module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
