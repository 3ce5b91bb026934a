"""How dcsync logs: one JSON line per event on standard error, the region name on every line about a subcloud.

Names and details come from outside, so nothing printed can break a line or carry a terminal escape (JSON escapes
both). Secrets are kept out at the source: no caller hands one over, and `repr` of records and keys shows none.
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
    """Send structlog and the standard library's loggers (Celery's among them) through one JSON formatter."""
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
    # Celery says "received" and "succeeded" for every task, and prints a stack for every message given back while
    # PostgreSQL is away; our own summary line per attempt says more.
    for chatty in ("celery.worker.strategy", "kombu", "asyncio", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("celery.app.trace").setLevel(max(logging.ERROR, root.level))


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one room."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
