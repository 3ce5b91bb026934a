"""Services behind audited endpoint types that neither Keystone nor dcdbsync nor sysinv's fernet_repo serves.

None today. An entry is made from a login and the cloud's addresses; what its `read` answers of the central cloud is in
`CentralData.others`, and of a subcloud the endpoint type's own class asks it (`SubcloudSession.service`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from dcsync.adapters.cloud.endpoints import ServiceUrls
from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.model.subcloud import EndpointType


class Service(Protocol):
    """One cloud's side of an endpoint type, under one login."""

    async def read(self) -> Any:
        """Everything that is compared; raises CloudError."""


SERVICES: dict[EndpointType, Callable[[Authenticated, ServiceUrls], Service]] = {}


def services_of(session: Authenticated, urls: ServiceUrls) -> dict[EndpointType, Service]:
    """One of each, for one cloud under one login; nothing is sent by making them."""
    return {endpoint_type: make(session, urls) for endpoint_type, make in SERVICES.items()}
