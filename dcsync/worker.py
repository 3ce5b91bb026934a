"""The Celery app of an installed dcsync: `celery -A dcsync.worker worker|beat|flower`, with DCSYNC_* variables."""

import sys

from dcsync.model.errors import MisconfiguredError
from dcsync.tasks.app import make_app

try:
    app = make_app()
except MisconfiguredError as exc:
    sys.exit(f"dcsync: {exc}")
