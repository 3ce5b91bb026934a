"""`ports.Inventory` in memory. Trusted because `contract/test_inventory_contract.py` runs on it and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from dcsync.model.errors import DuplicateSubcloud, RefusedByGuard, listed, refuse_unknown
from dcsync.model.history import RequestHistory
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
    SyncStatus,
)
from tests.builders import statuses


class FakeInventory:
    """Subclouds by name, and what was asked of each."""

    def __init__(self, *subclouds: Subcloud) -> None:
        self.subclouds = {known.name: known for known in subclouds}
        self.requests: dict[str, list[RequestHistory]] = {known.name: [] for known in subclouds}

    def put(self, name: str, **changes: Any) -> None:
        """As if a run or the state service had written these columns; `sync_status`: verified at NOON."""
        if "sync_status" in changes:
            changes["endpoints"] = statuses(changes.pop("sync_status"))
        self.subclouds[name] = replace(self.subclouds[name], **changes)

    def add(self, subclouds: Sequence[NewSubcloud], *, now: datetime) -> None:
        names, regions = [new.name for new in subclouds], [new.region_name for new in subclouds]
        twice = [{each for each in given if given.count(each) > 1} for given in (names, regions)]
        if any(twice):
            raise DuplicateSubcloud.given_twice(*twice)
        there = self.subclouds.keys() & set(names), {known.region_name for known in self.all()} & set(regions)
        if any(there):
            raise DuplicateSubcloud.already_there(*there)
        for id_, new in enumerate(subclouds, start=len(self.requests) + 1):
            self.subclouds[new.name] = Subcloud(
                id=id_,
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

    def find(self, names: Sequence[str]) -> list[Subcloud]:
        refuse_unknown(names, self.subclouds)
        return [self.subclouds[name] for name in names]

    def all(self) -> list[Subcloud]:
        return sorted(self.subclouds.values(), key=lambda known: known.name)

    def names_starting_with(self, prefix: str, *, limit: int) -> list[str]:
        return sorted(name for name in self.subclouds if name.startswith(prefix))[:limit]

    def delete(self, name: str, *, now: datetime) -> Subcloud:
        (gone,) = self.find([name])
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
        return transitions

    def request(self, names: Sequence[str] | None, *, now: datetime, by: str) -> list[Transition]:
        chosen = self._chosen(names)
        eligible = [k for k in chosen if Pair(k.management_state, k.availability_status).is_eligible]
        if names is not None and len(eligible) < len(chosen):
            refused = ", ".join(known.name for known in chosen if known not in eligible)
            raise RefusedByGuard(f"only managed and online subclouds can be synced, not {refused}")
        for known in eligible:
            self.put(known.name, subsequent_sync=False)
            self._apply(known.name, InitialSyncEvent.ASKED, now=now, by=by, cause=str(InitialSyncEvent.ASKED))
        return [self._transition(known, InitialSyncEvent.ASKED) for known in eligible]

    def history(self, name: str) -> list[RequestHistory]:
        self.find([name])
        return self.requests[name][::-1]

    def _chosen(self, names: Sequence[str] | None) -> list[Subcloud]:
        return (
            self.all() if names is None else sorted(self.find(list(dict.fromkeys(names))), key=lambda known: known.name)
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


def _asked(known: Subcloud, *, now: datetime) -> dict[EndpointType, EndpointStatus]:
    """What dcsync audits itself is unknown until that was done."""
    asked = {"sync_status": SyncStatus.UNKNOWN, "reason": Unproven.ASKED, "requested_at": now}
    return {
        type_: replace(status, **asked) if status.is_audited else status for type_, status in known.endpoints.items()
    }
