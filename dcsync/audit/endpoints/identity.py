"""The endpoint type `identity`: users, groups, projects, roles, grants and revocation events.

`dcsync.planner` plans differences and repairs. Source: docs/upstream/identity-sync.md section 9.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable

from dcsync.audit.endpoints.base import AuditedEndpoint, Comparison, Memory, Scope, Writer
from dcsync.audit.preview import describe
from dcsync.model.identity import CentralData, ResourceType
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType
from dcsync.planner.differences import ASSIGNMENTS, REVOCATION_EVENTS
from dcsync.planner.match import Cloud
from dcsync.planner.plan import IdentityPlan, plan_audit
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import carry_out, read_cloud, replace_fernet_keys


class Identity(AuditedEndpoint[Cloud]):
    endpoint_type = EndpointType.IDENTITY
    resource_types = (*(resource_type.value for resource_type in ResourceType), ASSIGNMENTS, REVOCATION_EVENTS)
    compared = "users, groups, projects, roles, grants and revocations"
    purpose = (
        "the subcloud has the central users, groups, projects, roles, grants and revocations, under the central ids"
    )
    not_verified = Reason.IDENTITY_NOT_VERIFIED

    def central_fingerprint(self, central: CentralData) -> str:
        grants = _digest([a.project_id, a.actor_type.value, a.actor_id, a.role_id] for a in central.assignments)
        return _digest([[central.identity_fingerprint], [grants]])

    def central_events_fingerprint(self, central: CentralData) -> str:
        return _digest([list(map(list, event.columns)) for event in central.revocation_events])

    def central_counts(self, central: CentralData) -> dict[str, int]:
        counts = {resource_type.value: len(central.records.of(resource_type)) for resource_type in ResourceType}
        return counts | {ASSIGNMENTS: len(central.assignments)}

    async def read(self, session: SubcloudSession) -> Cloud:
        return await read_cloud(session)

    def compare(self, central: CentralData, held: Cloud, scope: Scope) -> Comparison:
        events = frozenset(
            event
            for event in central.revocation_events
            if event.matters_at(scope.now, token_lifetime=scope.token_lifetime)
        )
        memory = scope.memory
        plan = plan_audit(
            central=Cloud(central.records, central.assignments, events),
            subcloud=held,
            region_name=scope.region_name,
            placed=memory.placed,
            groups_to_refill=memory.groups_to_refill,
            only=scope.only,
            knows_admin_password=scope.knows_admin_password,
            refused=scope.refused,
        )
        return Comparison(
            differences=plan.differences,
            writes=plan.words,
            deletions=plan.deletions,
            memory_during_repair=Memory(
                placed=memory.placed | plan.placed_meanwhile,
                groups_to_refill={**memory.groups_to_refill, **plan.groups_to_refill},
            ),
            memory_in_sync=Memory(placed=plan.placed),
            plan=plan,
            refused=plan.refused,
        )

    def describe(
        self, comparison: Comparison, *, central: CentralData, held: Cloud, only: Collection[str] | None
    ) -> tuple[str, ...]:
        return describe(comparison.differences, central=central.records, subcloud=held.records, only=only)

    async def repair(self, comparison: Comparison, *, central: CentralData, writer: Writer) -> None:
        """Carries out the plan; if ids change, also sends the keys, so that the subcloud drops tokens with old ids."""
        plan: IdentityPlan = comparison.plan
        delivered = await carry_out(
            plan.writes,
            session=writer.session,
            check_ownership=writer.check_ownership,
            users_at_once=writer.users_at_once,
            admin_password=writer.admin_password,
            note=writer.note,
            note_not_written=writer.note_not_written,
        )
        if delivered.changes_ids:
            await replace_fernet_keys(session=writer.session, keys=central.keys, check_ownership=writer.check_ownership)
            writer.note("POST fernet_repo")


def _digest(rows: Iterable[list[object]]) -> str:
    lines = sorted(json.dumps(row) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
