"""What the availability probe asks of the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from dcsync.model.subcloud import AvailabilityStatus


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Where to look, and what its row said when the look began; `probes` numbers this probe among the subcloud's."""

    region_name: str
    management_ip: str
    availability_status: AvailabilityStatus
    fail_count: int
    probes: int


class ProbeStore(Protocol):
    """When each subcloud is probed, managed or not."""

    def take_due(self, *, now: datetime, interval: timedelta) -> list[str]:
        """Region names of those due for a probe, who then are due again after about `interval`, a little spread."""

    def targets(self, region_names: Sequence[str]) -> list[ProbeTarget]:
        """Those of them that exist."""

    def note_seen(self, region_names: Sequence[str], *, now: datetime) -> None:
        """These were found online just now; one statement for all of them."""


class Prober(Protocol):
    """Looks whether subclouds are there."""

    async def probe(self, targets: Sequence[ProbeTarget], *, tell: Callable[[ProbeTarget, str | None], None]) -> None:
        """Probe all of them, many at once; `tell` hears of each as soon as it is known: None is good, else why not."""


class ProbeMessenger(Protocol):
    """Asks for probes."""

    def send_probes(self, chunks: Sequence[Sequence[str]], *, expires_seconds: float) -> None:
        """One message for each list of region names; raises BrokerUnreachable."""
