"""Checks whether runs still own their subclouds (port `Ownership`), for many runs of this process at once.

A run checks before each of its writes. Checks requested while another is in progress are combined into the next one:
one SELECT and one MGET, however many runs are active.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

from dcsync.model.ending import Ending
from dcsync.runs.ports import Locks, Owner, Standing

_LOCK_LOST = Standing(Ending.LOCK_LOST, "its lock expired or was taken by another run")


class Rows(Protocol):
    """Stores that know whether a run still owns its rows: RunStore, AuditStore."""

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        """For each run: None while its row is still its own, else why it must stop."""


class BatchedOwnership:
    """For use on one event loop only."""

    def __init__(self, store: Rows, locks: Locks) -> None:
        self._store = store
        self._locks = locks
        self._asked: list[tuple[Owner, asyncio.Future[Standing | None]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def standing(self, run: Owner) -> Standing | None:
        answer: asyncio.Future[Standing | None] = asyncio.get_running_loop().create_future()
        self._asked.append((run, answer))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        while self._asked:
            batch, self._asked = self._asked, []
            try:
                standings = await asyncio.to_thread(self._look_up, [run for run, _ in batch])
            except Exception as exc:  # noqa: BLE001 - any error must reach the waiting runs, or they would hang
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(exc)
            else:
                for run, answer in batch:
                    if not answer.done():
                        answer.set_result(standings[run.run_id])

    def _look_up(self, runs: list[Owner]) -> dict[str, Standing | None]:
        """Checks the row first: it gives a more precise reason for lost ownership than the lock."""
        by_row = self._store.standing({run.run_id for run in runs})
        owners = self._locks.owners([run.subcloud.region_name for run in runs])
        return {
            run.run_id: by_row[run.run_id] or (None if owners[run.subcloud.region_name] == run.run_id else _LOCK_LOST)
            for run in runs
        }
