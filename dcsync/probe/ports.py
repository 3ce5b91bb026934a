"""Ports of the availability probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from dcsync.model.subcloud import AvailabilityStatus


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A subcloud to probe, with its row's values at the start; `probes` is the number of this probe."""

    region_name: str
    management_ip: str
    availability_status: AvailabilityStatus
    fail_count: int
    probes: int


class ProbeStore(Protocol):
    """When each subcloud is probed, managed or not."""

    def take_due(self, *, now: datetime, interval: timedelta) -> list[str]:
        """Returns region names due for a probe and makes them due again after about `interval`, slightly spread."""

    def targets(self, region_names: Sequence[str]) -> list[ProbeTarget]:
        """Returns the targets for those subclouds that exist."""

    def note_seen(self, region_names: Sequence[str], *, now: datetime) -> None:
        """These were found online just now; one statement for all of them."""


class Prober(Protocol):
    """Checks whether subclouds respond."""

    async def probe(
        self, targets: Sequence[ProbeTarget], *, on_result: Callable[[ProbeTarget, str | None], None]
    ) -> None:
        """Probes all targets concurrently; calls `on_result` as each completes, with None if good, else the problem."""


class ProbeMessenger(Protocol):
    """Sends messages that request probes."""

    def send_probes(self, chunks: Sequence[Sequence[str]], *, expires_seconds: float) -> None:
        """Sends one message per list of region names; raises BrokerUnreachable."""
