"""sysinv's fernet_repo: a cloud's token keys, read and replaced as a whole.

Source: docs/upstream/http-contracts.md section 4.
"""

from __future__ import annotations

from typing import Any

from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.model.identity import FernetKeys, fernet_keys


class SysinvFernetRepo:
    """The `FernetRepo` of one cloud, under one login."""

    def __init__(self, session: Authenticated, *, url: str) -> None:
        self._session = session
        self._url = f"{url}/fernet_repo"

    async def read(self) -> FernetKeys:
        """The keys now in use, possibly none; raises CloudError. Whether they are good keys is for the caller."""
        reply = await self._session.request("GET", self._url, expected=(200,))
        answer = reply.json()
        rows = answer.get("keys") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(_is_key_row(row) for row in rows):
            raise reply.bad("not a list of keys")
        try:
            return fernet_keys((row["id"], row["key"]) for row in rows)
        except ValueError as exc:
            raise reply.bad("a key id comes twice") from exc

    async def replace(self, keys: FernetKeys) -> None:
        """Send the whole set; may be repeated. The token used is void afterwards. Raises CloudError.

        Raises ValueError for an empty set, before anything is sent: an empty POST makes the subcloud invent keys.
        """
        await self._session.request("POST", self._url, expected=(201, 200, 202), body=_rows(keys))

    async def put(self, keys: FernetKeys) -> None:
        """As replace, with the verb for a repository in use. Raises CloudError; ValueError for an empty set."""
        await self._session.request("PUT", self._url, expected=(202, 200, 201), body=_rows(keys))


def _rows(keys: FernetKeys) -> list[dict[str, object]]:
    """The primary first, the staged key last. sysinv writes one file after another, and a rotation makes the key that
    was staged primary: were its file overwritten before it stands under its new id, a cloud that is just being written,
    or whose sysinv dies half-way, would reject what the others issue."""
    if not keys.keys:
        raise ValueError("an empty set of keys is never sent")
    return [{"id": key_id, "key": keys.keys[key_id]} for key_id in sorted(keys.keys, reverse=True)]


def _is_key_row(row: Any) -> bool:
    key = row.get("key") if isinstance(row, dict) else None
    return type(key) is str and key.isascii() and type(row.get("id")) is int
