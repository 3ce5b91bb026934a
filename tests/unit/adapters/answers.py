"""An `Authenticated` that is answered with bytes a test chooses, in a session with limits a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from dcsync.adapters.cloud.http import Limits, Reply

T = TypeVar("T")


class Answers:
    def __init__(self, body: bytes, limits: Limits | None = None, *, status: int = 200) -> None:
        self.limits = limits or Limits()
        self.cost = self.limits.cost()
        self.reply = Reply("GET http://site/x", status, None, body, None, self.limits.json, self.cost)

    async def request(self, method: str, url: str, **_: Any) -> Reply:
        return self.reply


def run(work: Awaitable[T]) -> T:
    async def main() -> T:
        return await work

    return asyncio.run(main())
