"""A request of aiohttp that checks, last of all, whether its run may still write (`dcsync.runs.writing`).

aiohttp calls `send` once it has a connection, and again when it repeats a request on another one; it keeps the headers
back and sends them with the body, in a task of its own (`write_bytes`), or at the end of `send` if there is no body.
"""

from __future__ import annotations

from typing import Any

import aiohttp

from dcsync.runs.writing import before_bytes_leave


class OwnedRequest(aiohttp.ClientRequest):
    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        await before_bytes_leave()
        return await super().send(conn)

    async def write_bytes(self, writer: Any, conn: Any, content_length: int | None = None) -> None:
        """An error raised here would be lost with its task: it is handed to whoever waits for the reply."""
        try:
            await before_bytes_leave()
        except Exception as exc:  # noqa: BLE001 - handed on
            conn.protocol.set_exception(exc)
            return
        await super().write_bytes(writer, conn, content_length)
