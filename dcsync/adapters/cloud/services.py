"""Services of audited endpoint types other than Keystone, dcdbsync and sysinv's fernet_repo.

None today. An entry is created from a login and the cloud's URLs; what its `read` returns for the central cloud is in
`CentralData.others`, and for a subcloud the endpoint type's own class calls it (`SubcloudSession.service`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from dcsync.adapters.cloud.endpoints import ServiceUrls
from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.model.subcloud import EndpointType


class Service(Protocol):
    """The service of one endpoint type in one cloud, with one login."""

    async def read(self) -> Any:
        """Returns all data that is compared; raises CloudError."""


SERVICES: dict[EndpointType, Callable[[Authenticated, ServiceUrls], Service]] = {}


def services_of(session: Authenticated, urls: ServiceUrls) -> dict[EndpointType, Service]:
    """Returns one instance of each for one cloud, without sending anything."""
    return {endpoint_type: make(session, urls) for endpoint_type, make in SERVICES.items()}
