"""Shared by the runs of all services: runner, dispatch, ownership, delivery, and their ports."""
