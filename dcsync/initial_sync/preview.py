"""What an initial sync would write to a subcloud, found out without writing anything, neither there nor here."""

from __future__ import annotations

from dataclasses import dataclass

from dcsync.initial_sync.identity_plan import plan_identity
from dcsync.model.identity import FernetKeys, Record, Records, ResourceType
from dcsync.model.subcloud import Subcloud
from dcsync.planner.alignment import Update, password_hashes
from dcsync.runs.clouds import Clouds
from dcsync.runs.delivery import read_records

SHOWN_DIGITS = 8


@dataclass(frozen=True)
class SyncPreview:
    """In words and without secrets: names, fields, and short fingerprints of sets of keys."""

    differences: tuple[str, ...]
    """What the subcloud has otherwise than the centre, of all that an initial sync gives."""
    writes: tuple[str, ...]
    """In their order. Some users and the keys are written whether they differ or not."""


async def preview(*, clouds: Clouds, subcloud: Subcloud, request_id: str) -> SyncPreview:
    """Read both sides and plan every step. Raises CloudError where a sync would fail so."""
    central = await clouds.central_data()
    async with clouds.subcloud(subcloud, request_id=request_id) as session:
        records = await read_records(session.identity)
        keys = await session.fernet_repo.read()
    plan = plan_identity(central=central.records, subcloud=records, region_name=subcloud.region_name)
    return SyncPreview(
        differences=(*_differences(plan.updates, records), *_key_difference(central.keys, keys)),
        writes=(*(f"PUT {update.type} {update.record.name}" for update in plan.updates), "POST fernet_repo"),
    )


def _differences(updates: tuple[Update, ...], subcloud: Records) -> tuple[str, ...]:
    """A group that is emptied first and filled again is told once, as it is in the end."""
    last = {(update.type, update.old_id): update for update in updates}
    stored = {(type_, record.id): record for type_ in ResourceType for record in subcloud.of(type_)}
    told = ((update.record, _fields(update.record, stored[key])) for key, update in last.items())
    return tuple(f"{record.type} {record.name}: {', '.join(fields)}" for record, fields in told if fields)


def _fields(new: Record, old: Record) -> list[str]:
    fields = {
        "id": new.id != old.id,
        "local_user_ids": new.member_ids != old.member_ids,
        "password": new.type is ResourceType.USERS and password_hashes(new) != password_hashes(old),
    }
    return [field for field, differs in fields.items() if differs]


def _key_difference(central: FernetKeys, stored: FernetKeys) -> tuple[str, ...]:
    wanted, found = central.fingerprint(), stored.fingerprint()
    if wanted == found:
        return ()
    return (f"fernet_repo keys {found[:SHOWN_DIGITS]} instead of {wanted[:SHOWN_DIGITS]}: key_list",)
