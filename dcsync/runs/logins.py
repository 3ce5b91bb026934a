"""Port to what is remembered of refused logins, by all workers: a wrong password costs few tries, whoever would try it.

Five wrong passwords lock a user out (docs/upstream/real-keystone.md K12), and then the right one is refused as well.
Therefore at most one login of a user is in progress at one cloud at any time, a refused password is tried again only
after a hold-off, and whatever passwords are tried, only a few are refused within a while. Calls block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from dcsync.model.hold_off import hold_off

LONGEST_HOLD_OFFS = 12
"""The hold-off is doubled up to this many times the first one."""


@dataclass(frozen=True, kw_only=True)
class LoginLimits:
    """How often a login may be refused."""

    hold_off: timedelta = timedelta(seconds=300)
    """After the first refusal of a password; doubled after each further one."""
    refusals: int = 3
    """Within a window, whatever the passwords."""
    permit: timedelta = timedelta(seconds=60)
    """How long one login may take; afterwards the process that began it counts as dead."""

    @property
    def window(self) -> timedelta:
        return 2 * self.hold_off

    @property
    def hold_off_max(self) -> timedelta:
        return LONGEST_HOLD_OFFS * self.hold_off

    @property
    def remembered(self) -> timedelta:
        """How long a refusal is remembered: longer than any hold-off, so that hold-offs grow."""
        return 2 * self.hold_off_max

    def hold_offs(self, *, jitter: float, is_last_resort: bool) -> list[timedelta]:
        """Returns the hold-offs after the first, second, ... refusal in a row; the last one holds for all that follow.

        A password that is only a last resort is not tried again before the longest one is over.
        """
        attempts = [LONGEST_HOLD_OFFS] if is_last_resort else range(1, LONGEST_HOLD_OFFS + 1)
        return [
            hold_off(attempt=attempt, base=self.hold_off, cap=self.hold_off_max, jitter=jitter) for attempt in attempts
        ]


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user of one cloud, with the password that is to be tried."""

    cloud: str
    """URL of its Keystone, without a user and password."""
    user: str
    password: str = field(repr=False)
    scope: str = ""
    """What else the login names and may be wrong: the domains and the project."""
    is_last_resort: bool = False
    """A former password, which is tried once where the current one is refused."""

    @property
    def secret(self) -> str:
        """What is remembered as refused, never as it is."""
        return f"{self.password}\0{self.scope}"


@dataclass(frozen=True)
class Admitted:
    """The login may be tried now; its result is recorded under this permit."""

    permit: str


@dataclass(frozen=True)
class Busy:
    """Another login of this user is in progress at this cloud; try again in a moment."""


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """No login is sent before `retry_at`."""

    refused_at: datetime
    retry_at: datetime
    in_a_row: int
    """How often this password was refused; 0 where others were refused too often."""


@dataclass(frozen=True, kw_only=True)
class RefusedUser:
    """A user whose login was refused at one cloud, as shown to operators: the newest refusal."""

    cloud: str
    user: str
    refused_at: datetime
    retry_at: datetime
    in_a_row: int


@dataclass(frozen=True, kw_only=True)
class LoginCounts:
    """How many logins were refused, and how many were held back because of that."""

    refused: int = 0
    held_back: int = 0


class Verdict(StrEnum):
    """What the cloud made of a login."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """It gave no answer, or another one."""


class RefusedLogins(Protocol):
    """Refused logins of all processes. While the broker does not answer, each process has its own memory."""

    def admit(self, account: Account) -> Admitted | Busy | HeldBack:
        """Returns a permit for one login, or why none may be sent now. Never waits."""

    def settle(self, account: Account, permit: str, verdict: Verdict) -> HeldBack | None:
        """Records the result of an admitted login and ends its permit. Returns how long the password is held back now
        if it was refused."""

    def forget(self, account: Account) -> None:
        """Forgets that this password was refused here, because the cloud has it now; what counts against the number of
        refusals within a while is kept."""

    def counts(self) -> LoginCounts:
        """Returns the counts since they were begun. This and the following raise BrokerUnreachable."""

    def remembered(self) -> list[RefusedUser]:
        """Returns the users with a refused password, the newest refusal first."""

    def forget_all(self, cloud: str | None = None) -> int:
        """Forgets every refusal, or those at one cloud, so that passwords are tried at once. Returns of how many
        users."""
