"""The stores of every service, in PostgreSQL."""
