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

    def take_due(self, *, now: datetime, interval: timedelta, most: int) -> list[str]:
        """Returns region names of up to `most` subclouds due for a probe, longest due first, and makes them due again
        after about `interval`, slightly spread.

        One whose next probe is further away than that is due now. Rows locked by another transaction are skipped.
        """

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
    """Triggers availability sweeps."""

    def send_availability_sweep(self) -> None:
        """Sends a hint that more subclouds may be due for a probe; raises BrokerUnreachable."""
