"""Redis and Celery: locks, hints, reports, and what keeps a worker alive when Redis is away."""
