"""The rows: what PostgreSQL holds, one module per reader of it. SQL only; no decision about a subcloud is made here."""
