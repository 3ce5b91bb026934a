"""Celery's skin over the services: which queue, which limits, one call, the outcome as plain values. No logic here."""
