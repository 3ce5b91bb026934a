"""Clouds without sockets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from dcsync.fake_cloud.cloud import Cloud
from dcsync.fake_cloud.deployment import Deployment
from dcsync.fake_cloud.wire import Request

DEPLOYED_AT = datetime(2026, 11, 21, tzinfo=UTC)


def a_centre() -> Cloud:
    return Cloud(deployment=Deployment(0, DEPLOYED_AT), management_ip="127.0.10.1")


def a_subcloud(name: str = "subcloud1", *, aligned: bool = True) -> Cloud:
    return Cloud(deployment=Deployment(0, DEPLOYED_AT, name, aligned=aligned), management_ip="127.1.0.1")


def a_request(verb: str, path: str, body: Any = None, **headers: str) -> Request:
    return Request(verb, path, "", headers, b"" if body is None else json.dumps(body).encode())


def a_token(cloud: Cloud, *, user: str = "dcmanager", project: str = "services") -> str:
    user_id, project_id = cloud.id_named("users", user), cloud.id_named("projects", project)
    text, _ = cloud.issue(user_id=user_id, project_id=project_id, audit_id="a")
    return text
