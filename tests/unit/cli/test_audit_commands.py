"""`dcsync audit` and `sync-request`: what programs get where there is nobody to audit."""

from __future__ import annotations

import pytest

from tests.fakes_audit import MemoryAuditStore
from tests.unit.cli.conftest import Shell


@pytest.mark.parametrize("more", [(), ("--wait",)])
def test_programs_get_json_also_where_nobody_is_to_be_audited(dcsync: Shell, more: tuple[str, ...]) -> None:
    dcsync.operator.audit_store = MemoryAuditStore()  # type: ignore[assignment]
    dcsync.operator.queue.is_away = True
    told = dcsync("audit", "--all", "--yes", "-o", "json", *more)
    assert (told.code, told.json) == (1 if more else 0, [])
