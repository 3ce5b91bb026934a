"""The password of dcsync's own user is changed centrally while workers run: what it costs, and how it ends.

With real workers, the real hold-off, and clouds that lock a user out after five wrong passwords (K12).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dcsync.fake_cloud.control import PASSWORD, USERNAME
from dcsync.model.reasons import Reason
from tests.system import FAST, System, open_system

NEW = "Changed-dcmanager-pw-1!"
SUBCLOUDS = 8
HELD_BACK = 30
"""So many logins that are not sent are a storm."""
SETTINGS = {name: value for name, value in FAST.items() if name != "DCSYNC_LOGIN_HOLD_OFF"} | {
    "DCSYNC_CENTRAL_WATCH_INTERVAL": "1",
    "DCSYNC_AUDIT_INTERVAL": "3600",
}


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    return file


@pytest.fixture
def system(tmp_path: Path, password_file: Path) -> Iterator[System]:
    """Two sync workers whose password is in a file and who know the one before the change."""
    with open_system(tmp_path, subclouds=SUBCLOUDS, settings=SETTINGS) as system:
        del system.environ["DCSYNC_PASSWORD"]
        system.environ["DCSYNC_PASSWORD_FILE"] = str(password_file)
        system.environ["DCSYNC_PREVIOUS_PASSWORD"] = PASSWORD
        system.start_dcsync()
        system.start_sync_worker("other")
        yield system


def logins_at(system: System, cloud: str) -> int:
    requests: dict[str, int] = system.cloud.state(cloud)["requests"]
    return requests.get("POST keystone auth", 0)


def alarm_text(system: System) -> str:
    alarms = system.json("alarm", "list")
    return " ".join(each["reason_text"] for each in alarms if each["alarm_id"] == "dcsync.central-unreadable")


def test_a_changed_password_locks_nobody_out_and_reaches_every_subcloud(system: System, password_file: Path) -> None:
    names = system.add_online(count=SUBCLOUDS)
    system.manage(*names)
    system.until_at_rest(*names)
    assert system.json("login", "list")["refused"] == 0

    before = logins_at(system, "central")
    system.cloud.change_central("set-password", user=USERNAME, password=NEW)
    for name in names:
        system.cli("sync", name)
    assert {system.until_failed(name).reason for name in names} == {Reason.CENTRAL_AUTH_FAILED}
    system.until(lambda: system.json("login", "list")["held_back"] >= HELD_BACK, "a storm of logins held back")
    assert logins_at(system, "central") - before == 1
    assert system.json("login", "list")["refused"] == 1
    assert "login refused" in system.output()
    system.until(lambda: "central-auth-failed" in alarm_text(system), "an alarm that names the refused login")
    assert "not tried again with this password before" in alarm_text(system)

    password_file.write_text(NEW)
    system.until_at_rest(*names)
    system.assert_good(*names)
    assert logins_at(system, "central") - before < 10
    assert system.json("login", "list")["refused"] == 1 + SUBCLOUDS, "each subcloud refused the new password once"
    assert NEW not in system.output()
