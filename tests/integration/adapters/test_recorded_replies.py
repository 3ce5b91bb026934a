"""What a real Keystone and a real dcdbsync once answered is understood; see tests/data/recorded_clouds.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.model.errors import CloudError
from dcsync.model.identity import ResourceType, record_from_body
from dcsync.model.reasons import Reason
from tests.integration.adapters.scripted_site import ADDRESS, Site, a_subcloud, answer, sends

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "recorded_clouds.json").read_text())


@pytest.fixture(autouse=True)
def recorded(site: Site) -> None:
    login = json.dumps(RECORDED["login"])
    for port in ("8219", "6385"):
        login = login.replace(f"http://127.0.10.1:{port}", f"http://{ADDRESS}:{site.port}")
    site.behaviours["POST tokens"] = sends(answer(201, login, X_Subject_Token="gAAAAAB-a_token"))
    site.lists = RECORDED["lists"]
    site.behaviours["GET fernet_repo"] = sends(answer(200, RECORDED["keys"]))


OF_ONE_CLOUD = {"user": {"last_active_at"}, "local_user": {"failed_auth_count", "failed_auth_at"}}
"""What a cloud records about its own logins is neither read nor sent."""


def without_logins(body: dict[str, Any]) -> dict[str, Any]:
    def kept(part: str, value: Any) -> Any:
        left_out = OF_ONE_CLOUD.get(part, set())
        return {k: v for k, v in value.items() if k not in left_out} if isinstance(value, dict) else value

    return {part: kept(part, value) for part, value in body.items()}


async def test_recorded_lists_are_read_without_loss(clouds: HttpClouds) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        for type_ in ResourceType:
            records = await session.identity.list(type_)
            assert [record.body for record in records] == [*map(without_logins, RECORDED["lists"][type_.value])]


async def test_a_recorded_update_is_sent_and_understood(clouds: HttpClouds, site: Site) -> None:
    recorded = RECORDED["put_user"]
    site.behaviours["PUT users"] = sends(answer(200, recorded["stored"]))
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        sent = record_from_body(ResourceType.USERS, recorded["sent"])
        stored = await session.identity.update(recorded["old_id"], sent)
    assert stored.key == sent.key
    assert stored.id == sent.id != recorded["old_id"]
    (request,) = site.sent("PUT", "users")
    assert request.json == without_logins(recorded["sent"])


async def test_recorded_central_data_is_complete_and_its_catalog_understood(clouds: HttpClouds) -> None:
    data = await clouds.central_data()
    assert sorted(data.keys.keys) == [0, 2, 3]
    assert len(data.records.users) == len(RECORDED["lists"]["users"])


async def test_a_recorded_refusal_is_auth_failed(clouds: HttpClouds, site: Site) -> None:
    site.behaviours["GET users"] = sends(answer(401, RECORDED["unauthorized_html"], Content_Type="text/html"))
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        with pytest.raises(CloudError) as caught:
            await session.identity.list(ResourceType.USERS)
    assert caught.value.reason is Reason.AUTH_FAILED


async def test_a_recorded_login_refusal_is_auth_failed(clouds: HttpClouds, site: Site) -> None:
    site.behaviours["POST tokens"] = sends(answer(401, RECORDED["login_refused"]))
    with pytest.raises(CloudError) as caught:
        async with clouds.subcloud(a_subcloud(), request_id="req-1"):
            pass
    assert caught.value.reason is Reason.AUTH_FAILED
