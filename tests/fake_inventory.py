"""`ports.Inventory` in memory. Trusted because `contract/test_inventory_contract.py` runs on it and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from dcsync.model.errors import (
    AddressClash,
    DuplicateSubcloud,
    RefusedByGuard,
    UnknownSubcloud,
    listed,
    refuse_shared,
    refuse_unknown,
)
from dcsync.model.history import Life, RequestHistory
from dcsync.model.natural_order import in_natural_order
from dcsync.model.operation import Intent, Operation
from dcsync.model.pair import Pair, pair_change
from dcsync.model.reasons import Unproven
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState, Transition
from dcsync.model.subcloud import (
    DEFAULT_ENDPOINT_TYPES,
    AvailabilityStatus,
    EndpointStatus,
    EndpointType,
    ManagementState,
    NewSubcloud,
    Subcloud,
    SubcloudUpdate,
    SyncStatus,
    Updated,
    changed_fields,
)
from tests.builders import NOON, statuses


class FakeInventory:
    """Subclouds by name, what was asked of each, and what operators did: also `ports.Operations`."""

    def __init__(self, *subclouds: Subcloud) -> None:
        self.subclouds = {known.name: known for known in subclouds}
        self.requests: dict[str, list[RequestHistory]] = {known.name: [] for known in subclouds}
        self.lives: dict[str, list[Life]] = {}
        self.operations: list[tuple[Operation, frozenset[int], frozenset[str]]] = []
        """Each with the ids of all subclouds concerned and their names."""
        self._ids = len(subclouds)

    def put(self, name: str, **changes: Any) -> None:
        """As if a run or the state service had written these columns; `sync_status`: verified at NOON."""
        if "sync_status" in changes:
            changes["endpoints"] = statuses(changes.pop("sync_status"))
        self.subclouds[name] = replace(self.subclouds[name], **changes)

    def add(self, subclouds: Sequence[NewSubcloud], *, now: datetime, intent: Intent | None = None) -> None:
        self._refuse_taken(subclouds)
        _refuse_clashes(subclouds, {known.management_ip: known.name for known in self.all()})
        self._add(subclouds, now=now)
        self._done(intent, [new.name for new in subclouds], now=now)

    def _refuse_taken(self, subclouds: Sequence[NewSubcloud]) -> None:
        names, regions = [new.name for new in subclouds], [new.region_name for new in subclouds]
        twice = [{each for each in given if given.count(each) > 1} for given in (names, regions)]
        if any(twice):
            raise DuplicateSubcloud.given_twice(*twice)
        there = self.subclouds.keys() & set(names), {known.region_name for known in self.all()} & set(regions)
        if any(there):
            raise DuplicateSubcloud.already_there(*there)

    def _add(self, subclouds: Sequence[NewSubcloud], *, now: datetime) -> None:
        for new in subclouds:
            self._ids += 1
            self.lives.setdefault(new.name, []).insert(
                0,
                Life(
                    subcloud_id=self._ids,
                    name=new.name,
                    region_name=new.region_name,
                    added_at=now,
                    deleted_at=None,
                    entries=(),
                ),
            )
            self.subclouds[new.name] = Subcloud(
                id=self._ids,
                name=new.name,
                region_name=new.region_name,
                management_ip=new.management_ip,
                software_version=new.software_version,
                management_state=ManagementState.UNMANAGED,
                availability_status=AvailabilityStatus.OFFLINE,
                initial_sync_state=InitialSyncState.NONE,
                subsequent_sync=False,
                generation=0,
                attempt=0,
                updated_at=now,
                endpoints=dict.fromkeys(DEFAULT_ENDPOINT_TYPES, EndpointStatus(is_audited=True)),
            )
            self.requests[new.name] = []

    def update(
        self,
        updates: Sequence[SubcloudUpdate],
        *,
        new: Sequence[NewSubcloud] = (),
        now: datetime,
        by: str,
        intent: Intent | None = None,
    ) -> list[Updated]:
        known = dict(zip([each.name for each in updates], self.find([each.name for each in updates]), strict=True))
        moved = [each for each in updates if each.management_ip not in (None, known[each.name].management_ip)]
        staying = {k.management_ip: k.name for k in self.all() if k.name not in {each.name for each in moved}}
        self._refuse_taken(new)
        _refuse_clashes([*moved, *new], staying)
        done = [self._update(known[each.name], each, now=now, by=by) for each in updates]
        self._add(new, now=now)
        self._done(intent, [*(each.name for each in done if each.changes), *(each.name for each in new)], now=now)
        return done

    def _update(self, known: Subcloud, given: SubcloudUpdate, *, now: datetime, by: str) -> Updated:
        changes = changed_fields(given, management_ip=known.management_ip, software_version=known.software_version)
        if given.software_version is not None:
            self.put(known.name, software_version=given.software_version)
        if given.management_ip in (None, known.management_ip):
            return Updated(name=known.name, changes=changes)
        self.put(
            known.name, management_ip=given.management_ip, subsequent_sync=False, endpoints=_asked(known, now=None)
        )
        if not Pair(known.management_state, known.availability_status).is_eligible:
            return Updated(name=known.name, changes=changes)
        self._apply(known.name, InitialSyncEvent.ASKED, now=now, by=by, cause="management IP changed")
        return Updated(name=known.name, changes=changes, event=InitialSyncEvent.ASKED)

    def find(self, names: Sequence[str]) -> list[Subcloud]:
        refuse_unknown(names, self.subclouds)
        return [self.subclouds[name] for name in names]

    def all(self) -> list[Subcloud]:
        return sorted(self.subclouds.values(), key=lambda known: in_natural_order(known.name))

    def names_starting_with(self, prefix: str, *, limit: int) -> list[str]:
        return sorted(name for name in self.subclouds if name.startswith(prefix))[:limit]

    def delete(self, names: Sequence[str], *, now: datetime, intent: Intent | None = None) -> list[Subcloud]:
        gone = self.find(list(dict.fromkeys(names)))
        self._done(intent, [each.name for each in gone], now=now)
        for name in (each.name for each in gone):
            self.lives[name] = [replace(life, deleted_at=life.deleted_at or now) for life in self.history(name)]
            del self.subclouds[name]
        return gone

    def set_management(
        self,
        names: Sequence[str] | None,
        state: ManagementState,
        *,
        now: datetime,
        by: str,
        online_only: bool = False,
        intent: Intent | None = None,
    ) -> list[Transition]:
        changing = [known for known in self._chosen(names) if known.management_state is not state]
        offline = [known.name for known in changing if known.availability_status is AvailabilityStatus.OFFLINE]
        if online_only and offline:
            raise RefusedByGuard(f"offline: {listed(offline)}; nothing was changed")
        transitions = []
        for known in self._chosen(names):
            old = Pair(known.management_state, known.availability_status)
            change = pair_change(old=old, new=Pair(state, known.availability_status))
            if change:
                self.put(known.name, management_state=state, updated_at=now)
                if change.forget_subsequent_sync:
                    self.put(known.name, subsequent_sync=False, endpoints=_unknown(known, Unproven.UNMANAGED))
                self._apply(known.name, change.event, now=now, by=by, cause=str(state))
            transitions.append(self._transition(known, change.event if change else None))
        self._done(intent, [told.name for told in transitions], now=now)
        return transitions

    def request(
        self, names: Sequence[str] | None, *, now: datetime, by: str, intent: Intent | None = None
    ) -> list[Transition]:
        chosen = self._chosen(names)
        eligible = [k for k in chosen if Pair(k.management_state, k.availability_status).is_eligible]
        if names is not None and len(eligible) < len(chosen):
            refused = ", ".join(known.name for known in chosen if known not in eligible)
            raise RefusedByGuard(f"only managed and online subclouds can be synced, not {refused}")
        for known in eligible:
            self.put(known.name, subsequent_sync=False)
            self._apply(known.name, InitialSyncEvent.ASKED, now=now, by=by, cause=str(InitialSyncEvent.ASKED))
        self._done(intent, [known.name for known in eligible], now=now)
        return [self._transition(known, InitialSyncEvent.ASKED) for known in eligible]

    def history(self, name: str) -> list[Life]:
        if name not in self.subclouds:
            if name not in self.lives:
                raise UnknownSubcloud(name)
            return self.lives[name]
        (known,) = self.find([name])
        added_at = known.updated_at or NOON
        earlier = self.lives.get(name) or [
            Life(subcloud_id=known.id, name=name, region_name=known.region_name, added_at=added_at, deleted_at=None,
                 entries=())
        ]  # fmt: skip
        done = [operation for operation, ids, _ in self.operations if known.id in ids]
        entries = sorted([*self.requests[name][::-1], *done[::-1]], key=lambda entry: entry.at, reverse=True)
        return [replace(earlier[0], entries=tuple(entries)), *earlier[1:]]

    # --- operations ---

    def record(self, done: Operation, names: Sequence[str]) -> None:
        ids = frozenset(self.subclouds[name].id for name in names if name in self.subclouds)
        self.operations.append((done, ids, frozenset(names)))

    def newest(self, *, limit: int, name: str | None = None) -> list[Operation]:
        found = [done for done, _, names in self.operations if name is None or name in names]
        found.reverse()
        return sorted(found, key=lambda done: done.at, reverse=True)[:limit]

    def _done(self, intent: Intent | None, names: Sequence[str], *, now: datetime) -> None:
        if intent is not None:
            self.record(intent.done(names, now=now), names)

    def _chosen(self, names: Sequence[str] | None) -> list[Subcloud]:
        return (
            self.all()
            if names is None
            else sorted(self.find(list(dict.fromkeys(names))), key=lambda known: in_natural_order(known.name))
        )

    def _apply(self, name: str, event: InitialSyncEvent, *, now: datetime, by: str, cause: str) -> None:
        requested = INITIAL_SYNC.state_after(event) is InitialSyncState.REQUESTED
        generation = self.subclouds[name].generation + requested
        self.put(
            name,
            initial_sync_state=INITIAL_SYNC.state_after(event),
            generation=generation,
            attempt=0,
            requested_at=now if requested else None,
            **dict.fromkeys(("retry_at", "claimed_at", "run_id", "step", "reason")),
            detail="",
            updated_at=now,
        )
        if requested:
            self.put(name, endpoints=_asked(self.subclouds[name], now=now))
            self.requests[name].append(RequestHistory(generation, now, by, cause, ()))

    def _transition(self, known: Subcloud, event: InitialSyncEvent | None) -> Transition:
        return Transition(known.region_name, known.name, event, self.subclouds[known.name].initial_sync_state)


def _unknown(known: Subcloud, reason: Unproven) -> dict[EndpointType, EndpointStatus]:
    unknown = {"sync_status": SyncStatus.UNKNOWN, "reason": reason}
    return {
        type_: status if type_ is EndpointType.DC_CERT else replace(status, **unknown)
        for type_, status in known.endpoints.items()
    }


def _refuse_clashes(given: Sequence[NewSubcloud | SubcloudUpdate], taken: dict[str, str]) -> None:
    everybody = [(each.management_ip, each.name) for each in given] + list(taken.items())
    clashes = [
        AddressClash(each.name, ip, min(others))
        for each in sorted(given, key=lambda each: each.name)
        if (ip := each.management_ip) is not None
        and (others := [name for other_ip, name in everybody if other_ip == ip and name != each.name])
    ]
    if clashes:
        raise refuse_shared(clashes)


def _asked(known: Subcloud, *, now: datetime | None) -> dict[EndpointType, EndpointStatus]:
    """What dcsync audits itself is unknown until that was done."""
    asked = {"sync_status": SyncStatus.UNKNOWN, "reason": Unproven.ASKED, "requested_at": now}
    return {
        type_: replace(status, **asked) if status.is_audited else status for type_, status in known.endpoints.items()
    }
