"""What dcdbsync does to Keystone's tables: records out, records in, ids changed with all that refers to them.

A record is the JSON object that travels, in the shape of docs/upstream/identity-sync.md section 5. Payload rows go to
the tables unfiltered, so an unknown column, a duplicate or a broken reference is a database error, and the caller's
500. Every write is one transaction; a failing one leaves nothing behind.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

Row = dict[str, Any]
Body = Mapping[str, Any]

TABLES = (
    "user", "local_user", "password", "user_option", "group", "user_group_membership", "project", "role",
    "implied_role", "role_option", "assignment", "system_assignment", "revocation_event",
)  # fmt: skip
NO_PARENT = "<<keystone.domain.root>>"


class NotStoredError(Exception):
    """No record has this id."""


class IdentityTables:
    """`list_all`, `get`, `create` and `update` of users, groups, projects and roles; and revocation events."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        metadata = sa.MetaData()
        metadata.reflect(engine, only=TABLES)
        self._table = metadata.tables
        self._readers: dict[str, Callable[[Connection, str | None], list[Body]]] = {
            "users": self._users,
            "groups": self._groups,
            "projects": lambda connection, id_: self._plain(connection, "project", id_),
            "roles": lambda connection, id_: self._plain(connection, "role", id_),
        }
        self._writers: dict[str, Callable[[Connection, str, Body], None]] = {
            "users": self._write_user,
            "groups": self._write_group,
            "projects": self._write_project,
            "roles": self._write_role,
        }
        self._creators: dict[str, Callable[[Connection, Body], None]] = {
            "users": self._create_user,
            "groups": self._create_group,
            "projects": lambda connection, body: self._insert(connection, "project", [body["project"]]),
            "roles": lambda connection, body: self._insert(connection, "role", [body["role"]]),
        }

    def list_all(self, kind: str) -> list[Body]:
        """As they were at one moment, though a list is made of several tables."""
        with self._engine.execution_options(isolation_level="REPEATABLE READ").connect() as connection:
            return self._readers[kind](connection, None)

    def get(self, kind: str, id_: str) -> Body:
        """Raises NotStoredError."""
        with self._engine.connect() as connection:
            return self._stored(connection, kind, id_)

    def create(self, kind: str, body: Body) -> Body:
        with self._engine.begin() as connection:
            self._creators[kind](connection, body)
            return self._stored(connection, kind, _id_in(kind, body))

    def update(self, kind: str, old_id: str, body: Body) -> Body:
        """Put `body` over the record `old_id`; raises NotStoredError if afterwards none has the body's id."""
        with self._engine.begin() as connection:
            self._writers[kind](connection, old_id, body)
            return self._stored(connection, kind, _id_in(kind, body))

    # --- revocation events

    def events(self, **columns: str) -> list[Body]:
        """Those with these values, all without any; raises SQLAlchemyError for a text that is no time."""
        with self._engine.connect() as connection:
            event = self._table["revocation_event"]
            query = sa.select(event).where(*self._alike(columns)).order_by(event.c.id)
            return [{"revocation_event": row} for row in self._rows(connection, query)]

    def create_event(self, body: Body) -> None:
        with self._engine.begin() as connection:
            self._insert(connection, "revocation_event", [_without_id(body["revocation_event"])])

    def delete_events(self, **columns: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(self._table["revocation_event"]).where(*self._alike(columns)))

    def _alike(self, columns: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
        event = self._table["revocation_event"]
        return [event.c[name] == value for name, value in columns.items()]

    # --- records

    def _stored(self, connection: Connection, kind: str, id_: str) -> Body:
        found = self._readers[kind](connection, id_)
        if not found:
            raise NotStoredError(id_)
        return found[0]

    # --- reading

    def _users(self, connection: Connection, id_: str | None) -> list[Body]:
        """Only users with a local row: others never appear."""
        local, password = self._table["local_user"], self._table["password"]
        wanted = sa.true() if id_ is None else local.c.user_id == id_
        locals_ = self._rows(connection, sa.select(local).where(wanted).order_by(local.c.id))
        ids = [row["user_id"] for row in locals_]
        user, option = self._table["user"], self._table["user_option"]
        users = {row["id"]: row for row in self._rows(connection, sa.select(user).where(user.c.id.in_(ids)))}
        of_locals = password.c.local_user_id.in_([row["id"] for row in locals_])
        passwords = self._rows(connection, sa.select(password).where(of_locals).order_by(password.c.id))
        options = self._rows(connection, sa.select(option).where(option.c.user_id.in_(ids)))
        return [
            {
                "local_user": row,
                "user": users[row["user_id"]],
                "password": [entry for entry in passwords if entry["local_user_id"] == row["id"]],
                "user_option": [entry for entry in options if entry["user_id"] == row["user_id"]],
            }
            for row in locals_
        ]

    def _groups(self, connection: Connection, id_: str | None) -> list[Body]:
        group, member, local = (self._table[name] for name in ("group", "user_group_membership", "local_user"))
        wanted = sa.true() if id_ is None else group.c.id == id_
        groups = self._rows(connection, sa.select(group).where(wanted).order_by(group.c.name))
        query = sa.select(member).join(local, local.c.user_id == member.c.user_id)
        members = self._rows(connection, query)
        return [
            {
                "group": row,
                "local_user_ids": sorted(entry["user_id"] for entry in members if entry["group_id"] == row["id"]),
            }
            for row in groups
        ]

    def _plain(self, connection: Connection, name: str, id_: str | None) -> list[Body]:
        table = self._table[name]
        wanted = sa.true() if id_ is None else table.c.id == id_
        return [{name: row} for row in self._rows(connection, sa.select(table).where(wanted).order_by(table.c.name))]

    def _rows(self, connection: Connection, query: sa.Select[Any]) -> list[Row]:
        return [{name: _rendered(value) for name, value in row.items()} for row in connection.execute(query).mappings()]

    # --- writing

    def _write_user(self, connection: Connection, old_id: str, body: Body) -> None:
        """`local_user` follows the id by the foreign key's cascade, so the update by the old id then meets nothing."""
        new_id = body["user"]["id"]
        option = self._table["user_option"]
        options = self._taken_out(connection, "user_option", option.c.user_id == old_id)
        self._change(connection, "user", "id", old_id, body["user"])
        local_values = {name: value for name, value in body["local_user"].items() if name != "id"}
        self._change(connection, "local_user", "user_id", old_id, local_values)
        if "user_option" in body:
            connection.execute(sa.delete(option).where(option.c.user_id == new_id))
            options = list(body["user_option"])
        self._insert(connection, "user_option", [row | {"user_id": new_id} for row in options])
        self._replace_passwords(connection, new_id, body["password"])
        if old_id != new_id:
            self._repoint(connection, old_id, new_id, ("assignment", "actor_id"), ("system_assignment", "actor_id"))
            self._repoint(connection, old_id, new_id, ("user_group_membership", "user_id"))

    def _replace_passwords(self, connection: Connection, user_id: str, rows: Sequence[Body]) -> None:
        local, password = self._table["local_user"], self._table["password"]
        local_id = connection.execute(sa.select(local.c.id).where(local.c.user_id == user_id)).scalar_one_or_none()
        if local_id is None:
            return
        connection.execute(sa.delete(password).where(password.c.local_user_id == local_id))
        self._insert(connection, "password", [_without_id(row) | {"local_user_id": local_id} for row in rows])

    def _write_group(self, connection: Connection, old_id: str, body: Body) -> None:
        if "group" not in body or "local_user_ids" not in body:
            return
        new_id, members = body["group"]["id"], sorted(body["local_user_ids"])
        membership = self._table["user_group_membership"]
        stored = self._groups(connection, old_id)
        if old_id != new_id or not stored or stored[0]["local_user_ids"] != members:
            connection.execute(sa.delete(membership).where(membership.c.group_id.in_((old_id, new_id))))
            self._change(connection, "group", "id", old_id, body["group"])
            self._insert(connection, "user_group_membership", [{"group_id": new_id, "user_id": id_} for id_ in members])
        else:
            self._change(connection, "group", "id", old_id, body["group"])
        if old_id != new_id:
            self._repoint(connection, old_id, new_id, ("assignment", "actor_id"), ("system_assignment", "actor_id"))

    def _write_project(self, connection: Connection, old_id: str, body: Body) -> None:
        """Projects below it are parked under the root domain while the id changes."""
        new_id = body["project"]["id"]
        project = self._table["project"]
        below = {column: project.c[column] == old_id for column in ("parent_id", "domain_id")}
        if old_id == new_id:
            self._change(connection, "project", "id", old_id, body["project"])
            return
        ids = {
            column: list(connection.execute(sa.select(project.c.id).where(refers)).scalars())
            for column, refers in below.items()
        }
        for column, refers in below.items():
            connection.execute(sa.update(project).where(refers).values({column: NO_PARENT}))
        self._change(connection, "project", "id", old_id, body["project"])
        for column, children in ids.items():
            connection.execute(sa.update(project).where(project.c.id.in_(children)).values({column: new_id}))
        self._repoint(connection, old_id, new_id, ("user", "domain_id"), ("assignment", "target_id"))

    def _write_role(self, connection: Connection, old_id: str, body: Body) -> None:
        new_id = body["role"]["id"]
        implied, option = self._table["implied_role"], self._table["role_option"]
        tied = sa.or_(implied.c.prior_role_id == old_id, implied.c.implied_role_id == old_id)
        ties = self._taken_out(connection, "implied_role", tied)
        options = self._taken_out(connection, "role_option", option.c.role_id == old_id)
        self._change(connection, "role", "id", old_id, body["role"])
        renamed = [{name: new_id if value == old_id else value for name, value in row.items()} for row in ties]
        self._insert(connection, "implied_role", renamed)
        self._insert(connection, "role_option", [row | {"role_id": new_id} for row in options])
        if old_id != new_id:
            self._repoint(connection, old_id, new_id, ("assignment", "role_id"), ("system_assignment", "role_id"))

    def _create_user(self, connection: Connection, body: Body) -> None:
        user_id = body["user"]["id"]
        self._insert(connection, "user", [body["user"]])
        self._insert(connection, "local_user", [_without_id(body["local_user"])])
        self._replace_passwords(
            connection, user_id, body["password"] or [{}]
        )  # As dcdbsync inserts an empty list (R9).
        self._insert(connection, "user_option", body.get("user_option", []))

    def _create_group(self, connection: Connection, body: Body) -> None:
        group_id = body["group"]["id"]
        self._insert(connection, "group", [body["group"]])
        rows = [{"group_id": group_id, "user_id": member} for member in body["local_user_ids"]]
        self._insert(connection, "user_group_membership", rows)

    # --- one table

    def _change(self, connection: Connection, name: str, column: str, value: str, values: Body) -> None:
        table = self._table[name]
        connection.execute(sa.update(table).where(table.c[column] == value).values(dict(values)))

    def _insert(self, connection: Connection, name: str, rows: Sequence[Body]) -> None:
        for row in rows:
            connection.execute(sa.insert(self._table[name]).values(dict(row)))

    def _taken_out(self, connection: Connection, name: str, condition: sa.ColumnElement[bool]) -> list[Row]:
        """The rows that met the condition, which are no longer in the table."""
        table = self._table[name]
        rows = [dict(row) for row in connection.execute(sa.select(table).where(condition)).mappings()]
        connection.execute(sa.delete(table).where(condition))
        return rows

    def _repoint(self, connection: Connection, old_id: str, new_id: str, *references: tuple[str, str]) -> None:
        for name, column in references:
            self._change(connection, name, column, old_id, {column: new_id})


def _id_in(kind: str, body: Body) -> str:
    id_: str = body[kind.removesuffix("s")]["id"]
    return id_


def _without_id(row: Body) -> Row:
    return {name: value for name, value in row.items() if name != "id"}


def _rendered(value: Any) -> Any:
    """Dates as dcdbsync prints them: `2026-11-21 22:55:39.931448`, without the fraction when there is none."""
    return str(value) if isinstance(value, dt.date) else value
