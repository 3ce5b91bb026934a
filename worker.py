"""The Celery app: `celery -A worker worker|beat|flower`."""

from dcsync.tasks.app import make_app

app = make_app()
