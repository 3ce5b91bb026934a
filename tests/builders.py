"""Builders with sensible defaults: a test names only what it is about."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dcsync.model.identity import CentralData, FernetKeys, Record, Records, ResourceType, fingerprint, record_from_body
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import (
    DEFAULT_ENDPOINT_TYPES,
    AvailabilityStatus,
    EndpointStatus,
    EndpointType,
    ManagementState,
    Subcloud,
    SyncStatus,
)

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def a_user(
    name: str, id_: str | None = None, *, domain_id: str = "default", password: str = "pw", **user: Any
) -> Record:
    id_ = id_ or f"user-{name}"
    return record_from_body(
        ResourceType.USERS,
        {
            "user": {
                "id": id_,
                "extra": "{}",
                "enabled": True,
                "default_project_id": None,
                "created_at": "2026-01-30 10:00:00.000000",
                "last_active_at": None,
                "domain_id": domain_id,
                **user,
            },
            "local_user": {
                "id": 7,
                "domain_id": domain_id,
                "name": name,
                "user_id": id_,
                "failed_auth_count": 0,
                "failed_auth_at": None,
            },
            "password": [
                {
                    "id": 12,
                    "local_user_id": 7,
                    "self_service": False,
                    "password_hash": f"$2b$04${password}",
                    "created_at": "2026-01-30 10:00:00.000000",
                    "created_at_int": 1769767200000000,
                    "expires_at": None,
                    "expires_at_int": None,
                }
            ],
            "user_option": [],
        },
    )


def a_group(name: str, id_: str | None = None, *, members: tuple[str, ...] = (), domain_id: str = "default") -> Record:
    row = {"id": id_ or f"group-{name}", "domain_id": domain_id, "name": name, "description": "", "extra": "{}"}
    return record_from_body(ResourceType.GROUPS, {"group": row, "local_user_ids": list(members)})


def a_project(name: str, id_: str | None = None, *, domain_id: str = "default") -> Record:
    row = {
        "id": id_ or f"project-{name}",
        "name": name,
        "extra": "{}",
        "description": "",
        "enabled": True,
        "domain_id": domain_id,
        "parent_id": domain_id,
        "is_domain": False,
    }
    return record_from_body(ResourceType.PROJECTS, {"project": row})


def a_role(name: str, id_: str | None = None, *, domain_id: str = "<<null>>") -> Record:
    row = {"id": id_ or f"role-{name}", "name": name, "extra": "{}", "domain_id": domain_id, "description": None}
    return record_from_body(ResourceType.ROLES, {"role": row})


def records(
    *,
    users: tuple[Record, ...] = (),
    groups: tuple[Record, ...] = (),
    projects: tuple[Record, ...] = (),
    roles: tuple[Record, ...] = (),
) -> Records:
    """A cloud's records; what every cloud has (admin, sysinv, dcmanager, admin and services, admin) is always there."""
    return Records(
        users=(*(a_user(name) for name in ("admin", "sysinv", "dcmanager")), *users),
        groups=groups,
        projects=(a_project("admin"), a_project("services"), *projects),
        roles=(a_role("admin"), *roles),
    )


def some_keys(seed: str = "centre", ids: tuple[int, ...] = (0, 1, 2)) -> FernetKeys:
    def key(id_: int) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(f"{seed}-{id_}".encode()).digest()).decode()

    return FernetKeys({id_: key(id_) for id_ in ids})


def central_data(of: Records | None = None, keys: FernetKeys | None = None) -> CentralData:
    of = of or records()
    return CentralData(records=of, keys=keys or some_keys(), identity_fingerprint=fingerprint(of))


def a_status(sync_status: SyncStatus = SyncStatus.UNKNOWN, **more: Any) -> EndpointStatus:
    """Of a type that dcsync audits; verified at NOON unless it is unknown."""
    is_known = sync_status is not SyncStatus.UNKNOWN
    is_good = sync_status is SyncStatus.IN_SYNC
    proof = {"verified_at": NOON if is_known else None, "last_good_at": NOON if is_good else None}
    return EndpointStatus(sync_status=sync_status, **({"is_audited": True} | proof | more))


def statuses(found: Mapping[EndpointType, SyncStatus], **more: Any) -> dict[EndpointType, EndpointStatus]:
    """One `a_status` for each; those that are not audited are so."""
    return {
        type_: a_status(status, **({"is_audited": type_ in DEFAULT_ENDPOINT_TYPES} | more))
        for type_, status in found.items()
    }


def an_address(name: str) -> str:
    """A management IP that no other name has."""
    return str(ipaddress.IPv4Address("10.0.0.0") + zlib.crc32(name.encode()) % 2**24)


def a_subcloud(region_name: str = "subcloud1", **changes: Any) -> Subcloud:
    if "sync_status" in changes:
        changes["endpoints"] = statuses(changes.pop("sync_status"))
    values: dict[str, Any] = {
        "last_seen_at": NOON,
        "id": 1,
        "name": region_name,
        "region_name": region_name,
        "management_ip": "10.10.10.1",
        "software_version": "24.09",
        "management_state": ManagementState.MANAGED,
        "availability_status": AvailabilityStatus.ONLINE,
        "initial_sync_state": InitialSyncState.REQUESTED,
        "subsequent_sync": False,
        "generation": 1,
        "attempt": 0,
        "requested_at": NOON,
    }
    return Subcloud(**(values | changes))
