"""`dcsync demo --drift`: damages subclouds and changes the central cloud; audits detect and repair both.

The fake cloud is changed directly. The differences are first reported without a repair (an audit of one small resource
type reports all differences), then repaired; then the central cloud changes and its keys are rotated. The verdict is
based on the fake cloud's own comparison.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcsync.local.demo import LOOK_SECONDS, Demo, _many
from dcsync.model.states.initial_sync import InitialSyncState

ARRIVAL_SECONDS = 180.0
"""How long a change may take to reach all subclouds, in addition to a tenth of a second per subcloud."""
NOTHING_TO_REPAIR = "revoke_events"
"""Everything is compared whatever is repaired, so an audit of this type reports differences without repairing them."""


@dataclass(frozen=True)
class Damage:
    """One change of a cloud."""

    text: str
    action: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


DAMAGES = (
    Damage("barbican's password is changed", "set-password", {"user": "barbican", "password": "Drifted-pw-1!"}),
    Damage("user vim is removed", "remove", {"type": "users", "name": "vim"}),
    Damage("role member gets another id", "move-id", {"type": "roles", "name": "member"}),
    Damage("the staged and the primary key are swapped", "swap-keys"),
    Damage("group ops loses a member", "set-members", {"group": "ops", "members": ["admin"]}),
)

CHANGES = (
    Damage("a new user, oncall, is in group ops", "add-user", {"user": "oncall", "password": "Oncall-pw-1!"}),
    Damage("barbican's password is changed", "set-password", {"user": "barbican", "password": "Central-new-pw-1!"}),
)


@dataclass(frozen=True)
class Seen:
    """The results of the demo; times in seconds. None: not in time."""

    damaged: int
    noticed: int
    """The number of damaged subclouds reported as different."""
    repaired_after: float | None
    arrived_after: Mapping[str, float | None]
    rotated_after: float | None


class DriftDemo(Demo):
    """The demo with damage instead of an outage."""

    def bring_into_line(self, *, start_up: float) -> int:
        """Syncs all, damages some, detects and repairs that, changes the central cloud, rotates its keys and verifies;
        returns the exit code."""
        self._command("subcloud", "import", str(self._write_import_file()))
        self._command("wait", "--for", "online", "--all", "--timeout", str(self._patience))
        self._command("subcloud", "manage", "--all", "--yes")
        completed = self._wait_until_completed().get(InitialSyncState.COMPLETED, 0)
        self._until_watched()
        self._command("audit", "--all", "--yes", "--wait", "--timeout", str(self._bound))
        self._command("wait", "--for", "in-sync", "--all", "--timeout", str(self._bound))
        names = [place["name"] for place in self.cloud.subclouds()]
        damaged = dict(zip(names, DAMAGES, strict=False))
        self._damage(damaged)
        noticed = self._notice(damaged)
        repaired = self._repair(damaged)
        arrived = {change.text: self._change(change) for change in CHANGES}
        rotated = self._rotate()
        seen = Seen(len(damaged), noticed, repaired, arrived, rotated)
        return self._conclude(seen, completed=completed, start_up=start_up)

    @property
    def _bound(self) -> int:
        return int(ARRIVAL_SECONDS + self.count / 10)

    # --- damage, repair, changes ---

    def _until_watched(self) -> None:
        """Waits for the watch's first check of the central cloud, which makes every audit due: before it, damage might
        be repaired before it is reported."""
        began = time.monotonic()
        while json.loads(self._cli(("keys", "show", "-o", "json")).stdout)["fingerprint"] is None:
            if time.monotonic() - began > self._bound:
                return
            self._pause(LOOK_SECONDS)

    def _damage(self, damaged: Mapping[str, Damage]) -> None:
        self._say("damage, done directly on the fake cloud:")
        for name, damage in damaged.items():
            self._say(f"  {name}: {damage.text}")
            self.cloud.drift(name, damage.action, **damage.arguments)

    def _notice(self, damaged: Mapping[str, Damage]) -> int:
        """Compares without repairing; returns how many were reported as different."""
        self._show_difference("diff", next(iter(damaged)))
        names = list(damaged)
        self._show_difference(
            "audit", *names, "--endpoint-type", "identity", "--resource-type", NOTHING_TO_REPAIR, "--wait",
            "--timeout", str(self._bound),
        )  # fmt: skip
        self._command("subcloud", "list", lines=len(names) + 1)
        reported = json.loads(self._cli(("audit", *names, "--dry-run", "-o", "json")).stdout)
        return sum(each["differs"] is True for each in reported)

    def _repair(self, damaged: Mapping[str, Damage]) -> float | None:
        began = time.monotonic()
        self._command("audit", *damaged, "--wait", "--timeout", str(self._bound), lines=2 * len(damaged) + 2)
        repaired = self._until_audited()
        self._command("wait", "--for", "in-sync", "--all", "--timeout", str(self._bound))
        return None if repaired is None else time.monotonic() - began

    def _change(self, change: Damage) -> float | None:
        """Changes the central cloud; returns the seconds until all subclouds have the change, None if not in time."""
        self._say(f"at the central cloud: {change.text}")
        self.cloud.change_central(change.action, **change.arguments)
        if change.action == "add-user":
            self.cloud.change_central("set-members", group="ops", members=["admin", "operator1", "oncall"])
        arrived = self._until_audited()
        self._say("  not everywhere in time" if arrived is None else f"  everywhere after {arrived:.1f} s")
        return arrived

    def _rotate(self) -> float | None:
        began = time.monotonic()
        self._command("keys", "rotate", "--yes", "--wait", "--timeout", str(self._bound))
        self._command("keys", "show", lines=6)
        return None if self._until_audited() is None else time.monotonic() - began

    def _until_audited(self) -> float | None:
        """Returns the seconds until the fake cloud finds no difference on any subcloud; None if not in time."""
        began = time.monotonic()
        while self.cloud.report()["audited"] < self.count:
            if time.monotonic() - began > self._bound:
                return None
            self._pause(LOOK_SECONDS)
        return time.monotonic() - began

    def _show_difference(self, *arguments: str) -> None:
        """Runs a command whose exit code may be 1, for a difference."""
        self._say(f"$ dcsync {' '.join(arguments)}")
        done = self._cli(arguments)
        self._show((done.stdout + done.stderr).splitlines(), 3 * len(DAMAGES))
        self._say(f"  (exit code {done.returncode})")
        self._pause(0)

    # --- the verdict ---

    def _conclude(self, seen: Seen, *, completed: int, start_up: float) -> int:
        report = self.cloud.report()
        self._show_list()
        self._say("")
        for line in [*summary(seen), f"start-up           {start_up:.1f} s"]:
            self._say(line)
        wrong = what_went_wrong(report, seen, count=self.count, completed=completed, restarts=self.machine.restarts)
        if wrong:
            self._say(self._logs())
            self._say(f"verdict: FAILED: {'; '.join(wrong)}")
            return 1
        self._say(f"verdict: OK: all {_many(self.count)} in-sync, verified at the far end, no violation")
        return 0


def summary(seen: Seen) -> Sequence[str]:
    """Returns the summary printed at the end."""
    return [
        f"damaged            {seen.damaged}, noticed {seen.noticed}",
        f"repaired           {_after(seen.repaired_after)}",
        *(f"arrived            {_after(after)}: {text}" for text, after in seen.arrived_after.items()),
        f"keys rotated       {_after(seen.rotated_after)}, held by all",
    ]


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else f"after {seconds:.1f} s"


def what_went_wrong(report: Mapping[str, Any], seen: Seen, *, count: int, completed: int, restarts: int) -> list[str]:
    """Returns the problems found; none is a good verdict."""
    late = [text for text, after in seen.arrived_after.items() if after is None]
    checks = {
        f"{count - completed} not completed": completed != count,
        f"{seen.damaged - seen.noticed} damaged and not noticed": seen.noticed != seen.damaged,
        "not all were repaired in time": seen.repaired_after is None,
        f"not everywhere in time: {', '.join(late)}": bool(late),
        "not all got the rotated keys in time": seen.rotated_after is None,
        f"{count - report['audited']} differ: {report['differences']}": report["audited"] != count,
        f"violations: {report['violations']}": report["violation_count"] != 0,
        f"{restarts} processes had to be started again": restarts != 0,
    }
    return [text for text, is_wrong in checks.items() if is_wrong]
