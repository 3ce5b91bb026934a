"""An endpoint type for tests: `firmware`, of which a cloud holds names with versions. An adapter, a class, an entry.

What `CONTRIBUTING.md` promises of a new endpoint type is shown with it: no file of dcsync names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from dcsync.adapters.cloud.endpoints import ServiceUrls
from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.audit.endpoints.base import AuditedEndpoint, Comparison, Scope, Writer
from dcsync.model.identity import CentralData
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType
from dcsync.planner.differences import Difference
from dcsync.runs.clouds import SubcloudSession

Images = Mapping[str, str]
"""Name -> version."""


class FirmwareApi:
    """The adapter: one cloud's images, read and written one by one."""

    def __init__(self, session: Authenticated, urls: ServiceUrls) -> None:
        self._session = session
        self._url = f"{urls.sysinv}/toy_images"

    async def read(self) -> Images:
        reply = await self._session.request("GET", self._url, expected=(200,))
        images = reply.json()
        if not isinstance(images, dict):
            raise reply.bad("not images")
        return images

    async def put(self, name: str, version: str) -> None:
        await self._session.request("PUT", f"{self._url}/{name}", expected=(200,), body={"version": version})

    async def delete(self, name: str) -> None:
        await self._session.request("DELETE", f"{self._url}/{name}", expected=(204, 404))


class Firmware(AuditedEndpoint[Images]):
    endpoint_type = EndpointType.FIRMWARE
    resource_types = ("images", "old_images")
    compared = "firmware images"
    purpose = "the subcloud has the central firmware images in the central versions"
    not_verified = Reason.SERVER_ERROR

    def central_fingerprint(self, central: CentralData) -> str:
        return hashlib.sha256(repr(sorted(self._wanted(central).items())).encode()).hexdigest()

    def central_counts(self, central: CentralData) -> dict[str, int]:
        return {"firmware images": len(self._wanted(central))}

    async def read(self, session: SubcloudSession) -> Images:
        images: Images = await session.service(self.endpoint_type).read()
        return images

    def compare(self, central: CentralData, held: Images, scope: Scope) -> Comparison:
        wanted = self._wanted(central)
        puts = [name for name, version in wanted.items() if held.get(name) != version]
        deletes = [name for name in held if name not in wanted]
        differences = [Difference("images", name, ("version",), wanted[name]) for name in puts]
        differences += [Difference("old_images", name, ("deleted centrally",)) for name in deletes]
        chosen_puts = puts if scope.only is None or "images" in scope.only else []
        chosen_deletes = deletes if scope.only is None or "old_images" in scope.only else []
        return Comparison(
            differences=tuple(differences),
            writes=(*(f"PUT images {name}" for name in chosen_puts), *(f"DELETE images {n}" for n in chosen_deletes)),
            deletions=len(chosen_deletes),
            memory_during_repair=scope.memory,
            memory_in_sync=scope.memory,
            plan=(chosen_puts, chosen_deletes),
        )

    async def repair(self, comparison: Comparison, *, central: CentralData, writer: Writer) -> None:
        puts, deletes = comparison.plan
        images = writer.session.service(self.endpoint_type)
        for name in puts:
            await writer.check_ownership()
            await images.put(name, self._wanted(central)[name])
        for name in deletes:
            await writer.check_ownership()
            await images.delete(name)

    def _wanted(self, central: CentralData) -> Images:
        images: Any = central.others[self.endpoint_type]
        return dict(images)
