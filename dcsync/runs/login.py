"""The login of one run at its subcloud, shared by all the work that the run does one after another."""

from __future__ import annotations

from contextlib import AsyncExitStack

from dcsync.model.errors import CloudError
from dcsync.model.identity import Records
from dcsync.model.reasons import Reason
from dcsync.runs.clouds import Clouds, SubcloudSession
from dcsync.runs.delivery import OwnershipCheck
from dcsync.runs.own_password import deliver_own_password
from dcsync.runs.ports import Owner


class Login:
    """Made when it is first needed, so that a run that fails before sends no password; closed by the runner."""

    def __init__(self, clouds: Clouds, run: Owner) -> None:
        self._clouds = clouds
        self._run = run
        self._request_id = f"req-{run.run_id}"
        self._open = AsyncExitStack()
        self._session: SubcloudSession | None = None

    async def session(self, *, central: Records, check_ownership: OwnershipCheck) -> SubcloudSession:
        """Returns the run's session, logged in. Raises CloudError; a second call tries again then.

        A subcloud that refuses the password and takes the one before it is given its new hash, of these central
        records, before anything else.
        """
        if self._session is None:
            try:
                self._session = await self._log_in()
            except CloudError as refused:
                if refused.reason is not Reason.AUTH_FAILED or not await self._is_delivered(central, check_ownership):
                    raise
                self._session = await self._log_in()
        return self._session

    async def close(self) -> None:
        """Closes the session's sockets, if there is a session."""
        self._session = None
        await self._open.aclose()

    async def _log_in(self) -> SubcloudSession:
        visit = self._clouds.subcloud(self._run.subcloud, request_id=self._request_id)
        return await self._open.enter_async_context(visit)

    async def _is_delivered(self, central: Records, check_ownership: OwnershipCheck) -> bool:
        """Delivers the own user's new hash with the previous password. Returns False if there is none, or if it is
        refused as well."""
        async with AsyncExitStack() as visiting:
            try:
                visit = self._clouds.with_previous_password(self._run.subcloud, request_id=self._request_id)
                session = await visiting.enter_async_context(visit)
            except CloudError as refused:
                if refused.reason is not Reason.AUTH_FAILED:
                    raise
                return False
            if session is None:
                return False
            await deliver_own_password(
                session=session,
                own_user=self._clouds.own_user,
                central=central,
                region_name=self._run.subcloud.region_name,
                check_ownership=check_ownership,
            )
        return True
