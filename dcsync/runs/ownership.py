"""Whether runs still own their subclouds (port `Ownership`), asked for many runs of this process in one go.

A run asks before each of its writes. Questions that come up while an answer is on its way are put together into the
next one: one SELECT and one MGET, however many runs are at work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

from dcsync.model.ending import Ending
from dcsync.runs.ports import Locks, Owner, Standing

_LOCK_LOST = Standing(Ending.LOCK_LOST, "its lock ran out or went to another run")


class Rows(Protocol):
    """Whoever knows whether the rows of a run are still its own: RunStore, AuditStore."""

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        """For each run: None while its row is still its own, else why it must stop."""


class BatchedOwnership:
    """To be used on one event loop only."""

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
            except Exception as exc:  # noqa: BLE001 - whatever it is, those who wait must hear it rather than hang
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(exc)
            else:
                for run, answer in batch:
                    if not answer.done():
                        answer.set_result(standings[run.run_id])

    def _look_up(self, runs: list[Owner]) -> dict[str, Standing | None]:
        """The row first: it says more about why a run lost its subcloud than the lock does."""
        by_row = self._store.standing({run.run_id for run in runs})
        owners = self._locks.owners([run.subcloud.region_name for run in runs])
        return {
            run.run_id: by_row[run.run_id] or (None if owners[run.subcloud.region_name] == run.run_id else _LOCK_LOST)
            for run in runs
        }
