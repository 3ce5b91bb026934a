"""Writes a plan and keys to a subcloud and verifies them; shared by initial sync and audit.

Before each write `check_ownership` is called, which raises when the run no longer owns its subcloud. A record that is
refused, or not stored as sent, stops only what depends on it. `dcsync.planner` decides what is written, in which order,
and what depends on what.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, assert_never

from dcsync.model.ending import Ending
from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys, Record, Records, ResourceType
from dcsync.model.outside_text import cut
from dcsync.model.reasons import Reason
from dcsync.planner.differences import stored_as_sent
from dcsync.planner.match import Cloud
from dcsync.planner.refused import NotWritten, refused, still_possible, unsent
from dcsync.planner.writes import Action, AddEvent, Create, Delete, Grant, Revoke, SetPassword, Update, Write
from dcsync.runs.clouds import IdentityService, SubcloudSession
from dcsync.runs.ports import Owner, Ownership, Standing
from dcsync.runs.writing import depends_on, writing

T = TypeVar("T")

REFUSED_IN_A_ROW = 10
"""Refusals of one kind of write (verb and type) after which the rest of that kind is not sent: a subcloud that refuses
everything costs some requests of each kind, not thousands, and deletions and revocations are still tried."""

OF_ONE_RECORD = frozenset({Reason.REFUSED, Reason.SERVER_ERROR, Reason.BAD_REPLY, Reason.IDENTITY_NOT_VERIFIED})
"""Failures of a write that may be due to its record. Others are the subcloud's, as is a pause that it requests."""

OwnershipCheck = Callable[[], Awaitable[None]]
"""Returns if the run still owns its subcloud; otherwise raises an error that ends the run."""


class Stopped(Exception):
    """The run no longer owns its subcloud; raised before its next write."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing)
        self.standing = standing


ANSWERS_TRIED = 3
"""Answers that come so late that nobody may write on them, after which the run is given back."""

_TOO_LATE = Standing(Ending.LOCK_LOST, "answers about its ownership came too late to write on them")


async def require_ownership(ownership: Ownership, run: Owner) -> None:
    """Returns if the run still owns its subcloud, by row and lock; raises Stopped if not. Writes that follow in
    `writing` depend on this answer."""

    async def ask() -> None:
        for _ in range(ANSWERS_TRIED):
            standing = await ownership.standing(run)
            if standing is not None:
                raise Stopped(standing)
            if ownership.is_recent(run):
                return
        raise Stopped(_TOO_LATE)

    async def ask_if_old() -> None:
        if not ownership.is_recent(run):
            await ask()

    await ask()
    depends_on(ask_if_old)


async def write_own(ownership: Ownership, run: Owner, write: Callable[..., bool], *args: object) -> None:
    """Writes to the run's own rows; raises Stopped with the reason when the run no longer owns them."""
    if not await asyncio.to_thread(write, *args):
        standing = await ownership.standing(run)
        raise Stopped(standing or Standing(Ending.SUPERSEDED, "the run no longer owns its row"))


async def read_records(identity: IdentityService) -> Records:
    """Reads the four lists of one cloud concurrently."""
    lists = await all_or_first_error([identity.list(type_) for type_ in ResourceType])
    return Records(*lists)


async def read_and_note(session: SubcloudSession) -> Records:
    """Reads the four lists, and notes them for what the run does next."""
    session.seen.records = await read_records(session.identity)
    return session.seen.records


async def read_cloud(session: SubcloudSession) -> Cloud:
    """Reads everything an identity audit compares, concurrently; not the four lists where their note still holds."""

    async def records() -> Records:
        return session.seen.take_records() or await read_records(session.identity)

    reads: list[Coroutine[Any, Any, Any]] = [
        records(),
        session.keystone.assignments(),
        session.identity.revocation_events(),
    ]
    lists, assignments, events = await all_or_first_error(reads)
    return Cloud(lists, assignments, events)


async def read_keys(session: SubcloudSession) -> FernetKeys:
    """Returns the subcloud's keys; not read where their note still holds."""
    return session.seen.take_keys() or await session.fernet_repo.read()


@dataclass(frozen=True)
class Delivered:
    """What became of the writes of a plan."""

    written: tuple[Write, ...] = ()
    not_written: tuple[NotWritten, ...] = ()

    @property
    def changes_ids(self) -> bool:
        """Whether issued tokens refer to ids that no longer exist; no token refers to a group."""
        return any(write.changes_id and not write.is_of_group for write in self.written)


async def carry_out(
    writes: Sequence[Write],
    *,
    session: SubcloudSession,
    check_ownership: OwnershipCheck,
    users_at_once: int,
    admin_password: str | None = None,
    note: Callable[[str], None] | None = None,
    note_not_written: Callable[[NotWritten], None] | None = None,
) -> Delivered:
    """Sends these writes in order. After an interruption at any point, a new plan continues the work.

    Independent writes of users are sent concurrently, `users_at_once` at a time. `admin_password`: the central one, for
    the subcloud's keyring. `note` is called with each write in words once it was carried out, `note_not_written` with
    each that was not.

    A write that is refused, or not stored as sent (identity-not-verified), stops only what depends on it. Once
    `REFUSED_IN_A_ROW` of one kind were refused, no more of that kind are sent. Raises CloudError for every other
    failure, for it would repeat itself with the next write.
    """
    sending = _Sending(
        session=session,
        check_ownership=check_ownership,
        admin_password=admin_password,
        note=note or _ignore,
        note_not_written=note_not_written or _ignore,
    )
    for batch in _batches(writes):
        if len(batch) == 1:
            await sending.send(*batch[0])
        else:
            await _side_by_side(batch, sending.send, at_once=users_at_once)
    return sending.delivered


def _ignore(what: object) -> None:
    pass


@dataclass(kw_only=True)
class _Sending:
    """The writes of one plan on their way."""

    session: SubcloudSession
    check_ownership: OwnershipCheck
    admin_password: str | None = field(repr=False)
    note: Callable[[str], None]
    note_not_written: Callable[[NotWritten], None]
    written: list[Write] = field(default_factory=list)
    lost: dict[int, NotWritten] = field(default_factory=dict)
    refused_in_a_row: Counter[str] = field(default_factory=Counter)
    """By kind of write."""

    @property
    def delivered(self) -> Delivered:
        return Delivered(tuple(self.written), tuple(self.lost[number] for number in sorted(self.lost)))

    async def send(self, number: int, write: Write) -> None:
        needed = [self.lost[need] for need in write.needs if need in self.lost]
        action = still_possible(write.action, [each.action for each in needed])
        if action is None:
            self._lose(number, unsent(write.action, needed))
        elif self.refused_in_a_row[write.kind] >= REFUSED_IN_A_ROW:
            cause = f"not sent, because {REFUSED_IN_A_ROW} such writes in a row were refused"
            self._lose(number, NotWritten(write.action, cause))
        else:
            await self._try(number, replace(write, action=action), planned=write.action)

    async def _try(self, number: int, write: Write, *, planned: Action) -> None:
        await self.check_ownership()
        try:
            with writing():
                await _send(write, self.session, self.admin_password)
        except CloudError as exc:
            if exc.reason not in OF_ONE_RECORD or exc.retry_after is not None:
                raise
            self.refused_in_a_row[write.kind] += 1
            self._lose(number, refused(planned, exc))
        else:
            self.refused_in_a_row[write.kind] = 0
            self.written.append(write)
            self.note(write.words)

    def _lose(self, number: int, lost: NotWritten) -> None:
        self.lost[number] = lost
        self.note_not_written(lost)


async def _side_by_side(
    writes: Sequence[tuple[int, Write]], send: Callable[[int, Write], Awaitable[None]], *, at_once: int
) -> None:
    """Sends all writes, `at_once` at a time; at the first error the others are cancelled."""
    waiting = iter(writes)

    async def sender() -> None:
        for number, write in waiting:
            await send(number, write)

    await all_or_first_error([sender() for _ in range(min(at_once, len(writes)))])


def _batches(writes: Sequence[Write]) -> Iterator[list[tuple[int, Write]]]:
    """Yields the writes in order, each with its index, in batches that may be sent concurrently."""
    batch: list[tuple[int, Write]] = []
    for number, write in enumerate(writes):
        begins_at = number - len(batch)
        fits = write.may_be_concurrent and all(need < begins_at for need in write.needs)
        if batch and not (fits and batch[0][1].may_be_concurrent):
            yield batch
            batch = []
        batch.append((number, write))
    if batch:
        yield batch


async def _send(write: Write, session: SubcloudSession, admin_password: str | None) -> None:
    session.seen.records = None
    match write.action:
        case Update(old, record):
            _verify(sent=record, stored=await session.identity.update(old.id, record))
        case Create(record):
            _verify(sent=record, stored=await session.identity.create(record))
        case SetPassword(user):
            if admin_password is None:
                raise ValueError(f"the plan sets the password of {user.name}, which is not known")
            await session.keystone.set_password(user.id, admin_password)
        case Grant(assignment):
            await session.keystone.grant(assignment)
        case AddEvent(event):
            await session.identity.create_revocation_event(event)
        case Revoke(assignment):
            await session.keystone.revoke(assignment)
        case Delete(record):
            await session.keystone.delete(record.type, record.id)
        case _:
            assert_never(write.action)


def _verify(*, sent: Record, stored: Record) -> None:
    """Raises CloudError unless the stored record, as returned in the reply, equals the record sent."""
    if not stored_as_sent(sent=sent, stored=stored):
        raise CloudError(Reason.IDENTITY_NOT_VERIFIED, f"{sent.type} {cut(sent.name)!r} was not stored as sent")


async def all_or_first_error(jobs: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Returns all results, or raises the first error itself (not in a group) once the others are cancelled and
    ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def replace_fernet_keys(*, session: SubcloudSession, keys: FernetKeys, check_ownership: OwnershipCheck) -> None:
    """Sends the whole central key set, then reads it back with a new login.

    This makes the subcloud discard cached tokens, which refer to ids that earlier writes replaced: so keys are
    sent then even to a subcloud that has them. Raises CloudError keys-not-verified when the set read back differs.
    Source: docs/upstream/initial-sync.md sections 1 and 6 (step 5); unlike upstream, no error is ignored.
    """
    problems = keys.problems()
    if problems:
        raise CloudError(Reason.CENTRAL_KEYS_INVALID, f"nothing was sent: {'; '.join(problems)}")
    await check_ownership()
    session.seen.keys = None
    with writing():
        await session.fernet_repo.replace(keys)
    await session.login()
    stored = await session.fernet_repo.read()
    if stored.fingerprint() != keys.fingerprint():
        raise CloudError(
            Reason.KEYS_NOT_VERIFIED,
            f"the subcloud returned keys {stored.shown_ids}, which differ from the central {keys.shown_ids}",
        )
    session.seen.keys = stored


async def holds_fernet_keys(*, session: SubcloudSession, keys: FernetKeys) -> bool:
    """Reads the subcloud's keys, notes them for what the run does next, and returns whether they are exactly these."""
    session.seen.keys = await session.fernet_repo.read()
    return session.seen.keys.fingerprint() == keys.fingerprint()
