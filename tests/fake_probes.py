"""Probes in memory: who is due (ProbeStore), and what a look at a subcloud finds (Prober).

Trusted because `contract/test_probes_contract.py` runs on them, on PostgreSQL and on probes over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dcsync.probe.ports import ProbeTarget


class FakeProbeStore:
    """ProbeStore over a dictionary; each subcloud is due again after exactly the interval."""

    def __init__(self, *targets: ProbeTarget) -> None:
        self._targets = {target.region_name: target for target in targets}
        self._due_at: dict[str, datetime] = {}
        self.seen_at: dict[str, datetime] = {}

    def take_due(self, *, now: datetime, interval: timedelta, most: int) -> list[str]:
        due = [name for name in self._targets if self._is_due(name, now=now, interval=interval)]
        due = sorted(due, key=lambda name: self._due_at.get(name, datetime.min.replace(tzinfo=UTC)))[:most]
        for name in due:
            self._due_at[name] = now + interval
            self._targets[name] = replace(self._targets[name], probes=self._targets[name].probes + 1)
        return due

    def _is_due(self, name: str, *, now: datetime, interval: timedelta) -> bool:
        due_at = self._due_at.get(name, now)
        return due_at <= now or due_at > now + interval * 1.1 + timedelta(seconds=2)

    def targets(self, region_names: Sequence[str]) -> list[ProbeTarget]:
        return [self._targets[name] for name in region_names if name in self._targets]

    def note_seen(self, region_names: Sequence[str], *, now: datetime) -> None:
        for name in region_names:
            if name in self._targets:
                self.seen_at[name] = max(now, self.seen_at.get(name, now))


class FakeProber:
    """Prober for which `dead` subclouds do not answer; these come last."""

    def __init__(self, dead: Collection[str] = ()) -> None:
        self._dead = frozenset(dead)

    async def probe(
        self, targets: Sequence[ProbeTarget], *, on_result: Callable[[ProbeTarget, str | None], None]
    ) -> None:
        for target in sorted(targets, key=lambda target: target.region_name in self._dead):
            on_result(target, "dead" if target.region_name in self._dead else None)
