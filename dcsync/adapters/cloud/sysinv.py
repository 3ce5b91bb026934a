"""sysinv's fernet_repo: reads and replaces the whole set of a cloud's fernet keys.

Source: docs/upstream/http-contracts.md section 4.
"""

from __future__ import annotations

import logging
from typing import Any

from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.model.identity import FernetKeys, fernet_keys, key_as_keystone_reads_it

MOST_KEYS = 1000
"""In one repository; Keystone's `max_active_keys` is 3 by default, and dcsync's at most 100."""
LONGEST_KEY = 255
"""In characters; a key has 44, and the file may end in a line break."""
LARGEST_ID = 2**31 - 1

_log = logging.getLogger(__name__)


class SysinvFernetRepo:
    """The `FernetRepo` of one cloud, with one login."""

    def __init__(self, session: Authenticated, *, url: str) -> None:
        self._session = session
        self._url = f"{url}/fernet_repo"

    async def read(self) -> FernetKeys:
        """Returns the current keys, possibly none, as Keystone reads them; raises CloudError. The caller validates
        them.

        An empty file is no key: Keystone ignores it with a warning, and so does this.
        """
        reply = await self._session.request("GET", self._url, expected=(200,))
        answer = reply.json()
        rows = answer.get("keys") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(_is_key_row(row) for row in rows):
            raise reply.bad("not a list of keys")
        if len(rows) > MOST_KEYS:
            raise reply.bad(f"{len(rows)} keys, more than {MOST_KEYS}")
        filled = [row for row in rows if row["key"]]
        if len(filled) < len(rows):
            _log.warning("%s: %d empty keys ignored", reply.call, len(rows) - len(filled))
        try:
            return fernet_keys((row["id"], key_as_keystone_reads_it(row["key"])) for row in filled)
        except ValueError as exc:
            raise reply.bad("duplicate key id") from exc

    async def replace(self, keys: FernetKeys) -> None:
        """Replaces the whole set (POST); may be repeated. The token used becomes invalid. Raises CloudError.

        Raises ValueError for an empty set before anything is sent: an empty POST makes the subcloud generate keys.
        """
        await self._session.request("POST", self._url, expected=(201, 200, 202), body=_rows(keys))

    async def put(self, keys: FernetKeys) -> None:
        """Updates the set of a repository in use (PUT). Raises CloudError; ValueError for an empty set."""
        await self._session.request("PUT", self._url, expected=(202, 200, 201), body=_rows(keys))


def _rows(keys: FernetKeys) -> list[dict[str, object]]:
    """Returns the rows, the primary key first and the staged key last. sysinv writes one file after another, and a
    rotation makes the staged key primary: if its file were overwritten before the key is written with its new id, a
    cloud would reject tokens of the others during the write, or for good if sysinv dies in between."""
    if not keys.keys:
        raise ValueError("an empty set of keys must not be sent")
    return [{"id": key_id, "key": keys.keys[key_id]} for key_id in sorted(keys.keys, reverse=True)]


def _is_key_row(row: Any) -> bool:
    key = row.get("key") if isinstance(row, dict) else None
    key_id = row.get("id") if isinstance(row, dict) else None
    is_key = type(key) is str and key.isascii() and len(key) <= LONGEST_KEY
    return is_key and type(key_id) is int and abs(key_id) <= LARGEST_ID
