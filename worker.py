"""`celery -A worker worker|beat|flower` from the root of the repository; installed, it is `celery -A dcsync.worker`."""

from dcsync.worker import app

__all__ = ["app"]
