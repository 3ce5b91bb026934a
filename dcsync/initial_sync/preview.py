"""Previews what an initial sync would write to a subcloud, without writing anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from dcsync.model.ending import Failure
from dcsync.model.identity import FernetKeys
from dcsync.model.subcloud import Subcloud
from dcsync.planner.plan import plan_initial_sync
from dcsync.planner.refused import failure_of
from dcsync.runs.clouds import Clouds
from dcsync.runs.delivery import read_records

SHOWN_DIGITS = 8


@dataclass(frozen=True)
class SyncPreview:
    """Differences and writes as text without secrets: names, fields and short fingerprints of key sets."""

    differences: tuple[str, ...]
    """Differences from the central cloud in the data that an initial sync writes."""
    writes: tuple[str, ...]
    """In order. Some users and the keys are written even if they do not differ."""
    refused: Failure | None = None
    """Why a sync would fail once it has made these writes; it would send no keys then."""


async def preview(*, clouds: Clouds, subcloud: Subcloud, request_id: str) -> SyncPreview:
    """Reads both clouds and plans every step. Raises CloudError as a sync would."""
    central = await clouds.central_data()
    async with clouds.subcloud(subcloud, request_id=request_id) as session:
        records = await read_records(session.identity)
        keys = await session.fernet_repo.read()
    plan = plan_initial_sync(central=central.records, subcloud=records, region_name=subcloud.region_name)
    differences = (*map(str, plan.differences), *_key_difference(central.keys, keys))
    if plan.refused:
        error = failure_of(plan.refused)
        return SyncPreview(differences, plan.words, Failure(error.reason, error.detail))
    return SyncPreview(differences, (*plan.words, "POST fernet_repo"))


def _key_difference(central: FernetKeys, stored: FernetKeys) -> tuple[str, ...]:
    wanted, found = central.fingerprint(), stored.fingerprint()
    if wanted == found:
        return ()
    return (f"fernet_repo keys {found[:SHOWN_DIGITS]} instead of {wanted[:SHOWN_DIGITS]}: key_list",)
