"""Checks whether runs still own their subclouds (port `Ownership`), for many runs of this process at once.

A run checks before each of its writes. Checks requested while another is in progress are combined into the next one:
one SELECT and one script in Redis, however many runs are active. That script renews the locks: an answer younger than a
part of a lock's life is therefore still true, whatever else renews it, and an older one is none. A process may be
stopped between the answer and its write, so the age counts by a clock that also runs meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

from dcsync.model.ending import Ending
from dcsync.runs.ports import Locks, Owner, Standing

_LOCK_LOST = Standing(Ending.LOCK_LOST, "its lock expired or was taken by another run")

VALID_SHARE = 0.5
"""Of a lock's life, for which an answer is valid."""


class Rows(Protocol):
    """Stores that know whether a run still owns its rows: RunStore, AuditStore."""

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        """For each run: None while its row is still its own, else why it must stop."""


class BatchedOwnership:
    """For use on one event loop only."""

    def __init__(self, store: Rows, locks: Locks, *, lock_ttl_seconds: float, elapsed: Callable[[], float]) -> None:
        """`elapsed`: seconds since any moment, by a clock that is never set and does not stop with the process."""
        self._store = store
        self._locks = locks
        self._valid_seconds = lock_ttl_seconds * VALID_SHARE
        self._elapsed = elapsed
        self._owned_at: dict[str, float] = {}
        """Run id -> when the last question was asked that was answered with yes."""
        self._asked: list[tuple[Owner, asyncio.Future[Standing | None]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def standing(self, run: Owner) -> Standing | None:
        answer: asyncio.Future[Standing | None] = asyncio.get_running_loop().create_future()
        self._asked.append((run, answer))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_all())
        return await answer

    def is_recent(self, run: Owner) -> bool:
        owned_at = self._owned_at.get(run.run_id)
        return owned_at is not None and self._is_valid(owned_at)

    def _is_valid(self, owned_at: float) -> bool:
        return self._elapsed() - owned_at < self._valid_seconds

    async def _answer_all(self) -> None:
        while self._asked:
            batch, self._asked = self._asked, []
            asked_at = self._elapsed()
            try:
                standings = await asyncio.to_thread(self._look_up, [run for run, _ in batch])
            except Exception as exc:  # noqa: BLE001 - any error must reach the waiting runs, or they would hang
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(exc)
            else:
                self._note(standings, asked_at=asked_at)
                for run, answer in batch:
                    if not answer.done():
                        answer.set_result(standings[run.run_id])

    def _note(self, standings: dict[str, Standing | None], *, asked_at: float) -> None:
        valid = {run_id: at for run_id, at in self._owned_at.items() if self._is_valid(at) and run_id not in standings}
        self._owned_at = valid | {run_id: asked_at for run_id, standing in standings.items() if standing is None}

    def _look_up(self, runs: list[Owner]) -> dict[str, Standing | None]:
        """Checks the row first: it gives a more precise reason for lost ownership than the lock."""
        by_row = self._store.standing({run.run_id for run in runs})
        held = self._locks.renew({run.run_id: run.subcloud.region_name for run in runs})
        return {run.run_id: by_row[run.run_id] or (None if run.run_id in held else _LOCK_LOST) for run in runs}
