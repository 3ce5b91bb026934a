"""dcdbsync: lists, creates and replaces a cloud's raw Keystone records and revocation events.

Matching and order of writes are decided by the planner. Source: docs/upstream/http-contracts.md section 3.
"""

from __future__ import annotations

from urllib.parse import quote

from dcsync.adapters.cloud.http import Reply
from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.model.identity import Record, ResourceType, RevocationEvent, record_from_body, revocation_event

LONGEST_ID = LONGEST_TEXT = 255
"""The length of Keystone's columns for ids and names."""
EVENTS = "token-revocation-events"


class Dbsync:
    """The `IdentityService` of one cloud, with one login."""

    def __init__(self, session: Authenticated, *, url: str) -> None:
        self._session = session
        self._url = url

    async def list(self, type_: ResourceType) -> tuple[Record, ...]:
        """Returns all records of one type; raises CloudError, as bad-reply when a record is malformed."""
        reply = await self._session.request("GET", f"{self._url}/identity/{type_.value}/", expected=(200,))
        found = await reply.listed(lambda body: _record(reply, type_, body))
        if found is None:
            raise reply.bad("not a list")
        return tuple(found.elements)

    async def update(self, old_id: str, record: Record) -> Record:
        """Replaces record `old_id` by `record` (PUT); returns what is now stored. May be repeated. Raises CloudError.

        Raises ValueError for an id that cannot be part of a URL; `list` returns none.
        """
        if not usable_id(old_id):
            raise ValueError("the id cannot be part of a URL")
        url = f"{self._url}/identity/{record.type.value}/{quote(old_id, safe='')}"
        reply = await self._session.request("PUT", url, expected=(200,), body=record.body)
        return _record(reply, record.type, reply.json())

    async def create(self, record: Record) -> Record:
        """Creates a record with its own id (POST); returns what is now stored. Raises CloudError.

        Must not be repeated: an existing id or name is a server-error (docs/upstream/recorded-traffic.md 10: 2).
        """
        url = f"{self._url}/identity/{record.type.value}/"
        reply = await self._session.request("POST", url, expected=(201, 200), body=record.body)
        return _record(reply, record.type, reply.json())

    async def revocation_events(self) -> frozenset[RevocationEvent]:
        """Returns all events; raises CloudError, as bad-reply when an event is malformed."""
        reply = await self._session.request("GET", f"{self._url}/identity/{EVENTS}/", expected=(200,))
        found = await reply.listed(lambda body: _event(reply, body))
        if found is None:
            raise reply.bad("not a list")
        return frozenset(found.elements)

    async def create_revocation_event(self, event: RevocationEvent) -> None:
        """Creates an event (POST). Raises CloudError. Repeated, it is stored twice, which revokes the same tokens.

        The reply is ignored: for an event without `audit_id` it is an empty object
        (docs/upstream/recorded-traffic.md 10: 9).
        """
        url = f"{self._url}/identity/{EVENTS}/"
        await self._session.request("POST", url, expected=(201, 200), body={"revocation_event": event.body})


def _event(reply: Reply, body: object) -> RevocationEvent:
    row = body.get("revocation_event") if isinstance(body, dict) else None
    if isinstance(row, dict) and row:
        event = revocation_event(row)
        if all(value is None or (isinstance(value, str) and _storable(value)) for _, value in event.columns):
            return event
    raise reply.bad("not a revocation event")


def _record(reply: Reply, type_: ResourceType, body: object) -> Record:
    record = None
    if isinstance(body, dict):
        try:
            record = record_from_body(type_, body)
        except (KeyError, TypeError, ValueError):
            record = None  # Raised below, unchained: the error's text may quote the record.
    if record is None or not _usable(record):
        raise reply.bad(f"not a record of {type_.value}")
    return record


def _usable(record: Record) -> bool:
    """Returns whether ids can be part of a URL, and texts stored and logged: subclouds are not trusted."""
    return all(usable_id(id_) for id_ in (record.id, *record.member_ids)) and all(
        _storable(text) for text in (record.name, record.domain_id)
    )


def usable_id(id_: str) -> bool:
    """Returns whether an id received from a cloud can be part of a URL."""
    return 0 < len(id_) <= LONGEST_ID and id_.isascii() and id_.isprintable() and id_ not in (".", "..")


def _storable(text: str) -> bool:
    if "\0" in text or len(text) > LONGEST_TEXT:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
