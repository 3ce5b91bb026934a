"""Redis and Celery: locks, hints, reports, and patches that keep a worker running when Redis is unavailable."""
