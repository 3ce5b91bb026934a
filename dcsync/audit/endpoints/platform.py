"""The endpoint type `platform`: the fernet repository, compared and replaced as a whole.

A subcloud with other keys than the central cloud rejects central tokens. Source: docs/upstream/platform-resources.md.
"""

from __future__ import annotations

from datetime import datetime

from dcsync.audit.endpoints.base import AuditedEndpoint, Comparison, Scope, Writer
from dcsync.model.identity import CentralData, FernetKeys
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType
from dcsync.planner.differences import Difference
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import read_keys, replace_fernet_keys

KEYS = "fernet_repo"


class Platform(AuditedEndpoint[FernetKeys]):
    endpoint_type = EndpointType.PLATFORM
    resource_types = (KEYS,)
    compared = "the fernet keys"
    purpose = "the subcloud holds exactly the central fernet keys, so that each side accepts the other's tokens"
    not_verified = Reason.KEYS_NOT_VERIFIED
    distributes_keys = True

    def central_fingerprint(self, central: CentralData) -> str:
        return central.keys.fingerprint()

    def central_counts(self, central: CentralData) -> dict[str, int]:
        return {"fernet keys": len(central.keys.keys)}

    async def read(self, session: SubcloudSession) -> FernetKeys:
        return await read_keys(session)

    def held_fingerprint(self, held: FernetKeys) -> str:
        return held.fingerprint()

    def compare(self, central: CentralData, held: FernetKeys, scope: Scope) -> Comparison:
        """Compares sets of (id, key); shows short digests of whole sets."""
        wanted, found = central.keys.fingerprint(), held.fingerprint()
        differs = wanted != found
        difference = Difference(KEYS, f"keys {found[:8]} instead of {wanted[:8]}", ("key_list",), wanted)
        return Comparison(
            differences=(difference,) if differs else (),
            writes=(f"POST {KEYS}",) if differs else (),
            memory_during_repair=scope.memory,
            memory_in_sync=scope.memory,
        )

    async def repair(self, comparison: Comparison, *, central: CentralData, writer: Writer) -> FernetKeys:
        """Replaces the whole set and reads it back with a new token."""
        await replace_fernet_keys(session=writer.session, keys=central.keys, check_ownership=writer.check_ownership)
        for write in comparison.writes:
            writer.note(write)
        return central.keys

    def is_planned(self, keys_planned_until: datetime | None, *, now: datetime) -> bool:
        """Returns True while a rotation is being distributed."""
        return keys_planned_until is not None and now < keys_planned_until
