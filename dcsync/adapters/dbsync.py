"""dcdbsync: a cloud's raw Keystone records, listed and replaced. Source: spec/http-contracts.md section 3.

What is matched with what, and in which order it is written, is decided elsewhere.
"""

from __future__ import annotations

from urllib.parse import quote

from dcsync.adapters.http import Reply
from dcsync.adapters.keystone import Authenticated
from dcsync.identity import Record, ResourceType, record_from_body

LONGEST_ID = 255


class Dbsync:
    """The `IdentityService` of one cloud, under one login."""

    def __init__(self, session: Authenticated, *, url: str) -> None:
        self._session = session
        self._url = url

    async def list(self, type_: ResourceType) -> tuple[Record, ...]:
        """Everything of one type; raises CloudError, as bad-reply when one record has another shape."""
        reply = await self._session.request("GET", f"{self._url}/identity/{type_.value}/", expected=(200,))
        found = reply.json()
        if not isinstance(found, list):
            raise reply.bad("not a list")
        return tuple(_record(reply, type_, body) for body in found)

    async def update(self, old_id: str, record: Record) -> Record:
        """PUT `record` over `old_id`; answers what is now stored. May be repeated. Raises CloudError.

        Raises ValueError for an id no address can be made of; `list` hands out none.
        """
        if not _usable_id(old_id):
            raise ValueError("an id that cannot stand in an address")
        url = f"{self._url}/identity/{record.type.value}/{quote(old_id, safe='')}"
        reply = await self._session.request("PUT", url, expected=(200,), body=record.body)
        return _record(reply, record.type, reply.json())


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
    """Whether ids can stand in an address, and texts in a table and a log: a site is not trusted with either."""
    return all(_usable_id(id_) for id_ in (record.id, *record.member_ids)) and all(
        "\0" not in text and _encodes(text) for text in (record.name, record.domain_id)
    )


def _usable_id(id_: str) -> bool:
    return 0 < len(id_) <= LONGEST_ID and id_.isascii() and id_.isprintable() and id_ not in (".", "..")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
