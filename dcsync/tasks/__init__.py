"""The Celery tasks: each makes one call to a service and returns its outcome as plain values. No logic here."""
