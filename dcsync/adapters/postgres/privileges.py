"""Roles and privileges: who may do what with the tables. `roles.sql` makes the roles, `dcsync db upgrade` grants.

Where these roles do not exist, nothing is granted and the owner of the schema is used for everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import psycopg2.extensions
from psycopg2 import sql
from sqlalchemy import Connection, text

OWNER, APP, READER = "dcsync_owner", "dcsync_app", "dcsync_reader"
ROLES_FILE = Path(__file__).with_name("roles.sql")

HISTORY: Mapping[str, frozenset[str] | None] = {
    "sync_request": None,
    "sync_attempt": frozenset({"run_id", "generation", "attempt", "worker", "started_at"}),
    "sync_step": frozenset({"run_id", "step", "started_at"}),
    "rejected_report": None,
    "audit_history": None,
    "operation": None,
    "deleted_subcloud": None,
}
"""The tables of what happened, and their columns that the app role cannot change once a row is written; None: all.

Rows are deleted by housekeeping, when they are older than DCSYNC_HISTORY_DAYS, so deleting is not withheld.
"""

_TABLES = text("""
    SELECT c.relname AS name, array_agg(a.attname::text ORDER BY a.attnum) AS columns FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND pg_has_role(c.relowner, 'USAGE')
    GROUP BY c.relname ORDER BY c.relname
""")


def role_statements(passwords: Mapping[str, str], connection: psycopg2.extensions.connection) -> str:
    """Returns roles.sql with these passwords (by `owner_password` and so on) in place of psql's variables."""

    def literal(variable: re.Match[str]) -> str:
        return str(sql.Literal(passwords[variable.group(1)]).as_string(connection))

    return re.sub(r":'(\w+)'", literal, ROLES_FILE.read_text(encoding="utf-8"))


def grant(connection: Connection) -> None:
    """Grants the roles that exist what they need of the tables of the current user; a second call changes nothing."""
    known = set(connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolname IN (:app, :reader)"), _ROLES))
    tables = {row.name: row.columns for row in connection.execute(_TABLES)}
    for role in sorted(known):
        for name, columns in tables.items():
            connection.execute(text(f'REVOKE ALL ON "{name}" FROM {role}'))
            for privilege in _privileges(role, name, columns):
                connection.execute(text(f'GRANT {privilege} ON "{name}" TO {role}'))
        if tables:
            connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {role}"))
    connection.commit()


_ROLES = {"app": APP, "reader": READER}


def _privileges(role: str, table: str, columns: list[str]) -> list[str]:
    if role == READER or table == "alembic_version":
        return ["SELECT"]
    if table not in HISTORY:
        return ["SELECT, INSERT, UPDATE, DELETE"]
    fixed = HISTORY[table]
    changed = [] if fixed is None else [f'"{column}"' for column in columns if column not in fixed]
    return ["SELECT, INSERT, DELETE", *([f"UPDATE ({', '.join(changed)})"] if changed else [])]
