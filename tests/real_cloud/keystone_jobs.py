"""What one forked child does with Keystone: make the tables, fill a cloud, serve it.

Keystone's configuration is global to a process, so each of these runs in a child that does nothing else before.
Source: docs/upstream/real-keystone.md sections 2 and 3.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import waitress
from keystone.cmd.bootstrap import Bootstrapper
from keystone.common import fernet_utils, provider_api
from keystone.common.sql import upgrades
from keystone.server import configure
from keystone.server.wsgi import initialize_public_application

from tests.real_cloud import content, services

THREADS = 4
PROVIDERS = provider_api.ProviderAPIs
CONFIGURATION = r"""
[DEFAULT]
log_file = {directory}/keystone.log
[database]
connection = {database_url}
[fernet_tokens]
key_repository = {directory}/fernet-keys
max_active_keys = 3
[fernet_receipts]
key_repository = {directory}/fernet-keys
[credential]
key_repository = {directory}/credential-keys
[identity]
password_hash_rounds = 4
[cache]
enabled = true
backend = dogpile.cache.null
[token]
allow_expired_window = 0
[security_compliance]
password_expires_days = 90
lockout_failure_attempts = 5
lockout_duration = 1800
unique_last_password_count = 5
password_regex = ^(?=.*\d)(?=.*[a-z])(?=.*[A-Z])(?=.*[!@#$$%^&*-]).{{12,}}$$
"""


def write_configuration(directory: Path, database_url: str) -> None:
    directory.mkdir(mode=0o700)
    (directory / "fernet-keys").mkdir(mode=0o700)
    text = CONFIGURATION.format(directory=directory, database_url=database_url)
    (directory / "keystone.conf").write_text(text, encoding="utf-8")


def make_tables(directory: Path) -> None:
    _configure(directory)
    upgrades.offline_sync_database_to_version(None)


def fill(directory: Path, cloud: Mapping[str, Any]) -> None:
    """Keys, then everything `content` says the cloud holds; `cloud` is the request the host was given for it."""
    _configure(directory)
    _make_keys(rotations=cloud["key_rotations"])
    Filling(cloud).fill()


def serve(directory: Path, cloud: Mapping[str, Any], sockets: Sequence[socket.socket]) -> None:
    """Keystone, dcdbsync and sysinv of one cloud on these listening sockets; returns never."""
    os.environ["OS_KEYSTONE_CONFIG_DIR"] = str(directory)
    sys.argv = ["keystone"]
    keystone = initialize_public_application()
    applications = [
        services.logged("keystone", directory, keystone),
        *services.applications(directory=directory, cloud=cloud["name"], auth_url=cloud["urls"]["keystone"]),
    ]
    threads = [_serving(application, listening) for application, listening in zip(applications, sockets, strict=True)]
    for thread in threads:
        thread.join()


def _serving(application: Callable[..., Any], listening: socket.socket) -> threading.Thread:
    server = waitress.create_server(application, sockets=[listening], threads=THREADS, asyncore_use_poll=True)
    thread = threading.Thread(target=server.run)
    thread.start()
    return thread


def _configure(directory: Path) -> None:
    sys.argv = ["keystone"]
    configure(config_files=[str(directory / "keystone.conf")])


def _make_keys(*, rotations: int) -> None:
    from keystone.conf import CONF

    group = CONF.fernet_tokens
    keys = fernet_utils.FernetUtils(group.key_repository, group.max_active_keys, "fernet_tokens")
    keys.initialize_key_repository()
    for _ in range(rotations):
        keys.rotate_keys()


class Filling:
    """Content through Keystone's own managers: the rows are Keystone's, the REST calls are saved."""

    def __init__(self, cloud: Mapping[str, Any]) -> None:
        self._cloud = cloud
        self._name: str = cloud["name"]
        self._content = content.content_of("central" if cloud["central"] else "subcloud")
        self._ids: dict[str, dict[str, str]] = {"users": {}, "projects": {}, "roles": {}, "groups": {}}
        self._bootstrapper = Bootstrapper()

    def fill(self) -> None:
        self._bootstrap()
        for name in self._content.projects:
            self._create_project(name)
        for name in self._content.roles:
            self._create_role(name)
        for prior, implied in self._content.implied_roles:
            PROVIDERS.role_api.create_implied_role(self._ids["roles"][prior], self._ids["roles"][implied])
        for user in self._content.users:
            self._create_user(user)
            for project, role in user.grants:
                self._grant(role, project, user_id=self._ids["users"][user.name])
        for group in self._content.groups:
            self._create_group(group)
        self._create_catalog()

    def _bootstrap(self) -> None:
        """Keystone's own bootstrap, which takes user and project `admin` as they are when they exist already."""
        bootstrapper = self._bootstrapper
        bootstrapper.admin_username = bootstrapper.project_name = bootstrapper.admin_role_name = "admin"
        bootstrapper.admin_password = content.first_password(self._name, "admin")
        bootstrapper.service_name = "keystone"
        bootstrapper.region_id = self._cloud["region_name"]
        keystone_url = self._cloud["urls"]["keystone"]
        bootstrapper.admin_url = bootstrapper.internal_url = bootstrapper.public_url = keystone_url
        bootstrapper.immutable_roles = True
        bootstrapper._bootstrap_default_domain()
        self._create_project("admin")
        self._create_user(content.User("admin", ()))
        bootstrapper.bootstrap()
        self._ids["roles"].update({role["name"]: role["id"] for role in PROVIDERS.role_api.list_roles()})

    def _id_for(self, kind: str, name: str) -> str:
        id_ = self._cloud["aligned"].get(kind, {}).get(name) or uuid.uuid4().hex
        self._ids[kind][name] = id_
        return id_

    def _create_project(self, name: str) -> None:
        id_ = self._id_for("projects", name)
        project = {"id": id_, "name": name, "domain_id": "default", "enabled": True, "description": ""}
        PROVIDERS.resource_api.create_project(id_, project)

    def _create_role(self, name: str) -> None:
        id_ = self._id_for("roles", name)
        PROVIDERS.role_api.create_role(id_, {"id": id_, "name": name})

    def _create_user(self, user: content.User) -> None:
        """Through the driver, for the manager above it gives every user an id of its own choice."""
        id_ = self._id_for("users", user.name)
        password = content.first_password(self._name, user.name)
        row: dict[str, Any] = {
            "id": id_,
            "name": user.name,
            "domain_id": "default",
            "enabled": True,
            "password": f"Earlier-{password}" if user.changed_password else password,
            "email": f"{user.name}@{self._name}.example.org",
        }
        if user.never_expires:
            row["options"] = {"ignore_password_expiry": True}
        PROVIDERS.identity_api.driver.create_user(id_, row)
        if user.changed_password:
            PROVIDERS.identity_api.driver.update_user(id_, {"password": password})

    def _create_group(self, group: content.Group) -> None:
        description = f"{group.name} of {self._name}"
        created = PROVIDERS.identity_api.create_group(
            {"name": group.name, "domain_id": "default", "description": description}
        )
        self._ids["groups"][group.name] = created["id"]
        for member in group.members:
            PROVIDERS.identity_api.add_user_to_group(self._ids["users"][member], created["id"])
        for project, role in group.grants:
            self._grant(role, project, group_id=created["id"])

    def _grant(self, role: str, project: str, **actor: str) -> None:
        PROVIDERS.assignment_api.create_grant(
            self._ids["roles"][role], project_id=self._ids["projects"][project], **actor
        )

    def _create_catalog(self) -> None:
        """dcdbsync and sysinv; at the central cloud also in region SystemController, where nobody listens."""
        urls = self._cloud["urls"]
        regions = {self._cloud["region_name"]: (urls["dbsync"], urls["sysinv"])}
        if self._cloud["central"]:
            PROVIDERS.catalog_api.create_region({"id": "SystemController"})
            regions["SystemController"] = ("http://127.0.0.1:9/v1.0", "http://127.0.0.1:9/v1")
        for number, (service_type, name) in enumerate((("dcorch-dbsync", "dcorch-dbsync"), ("platform", "sysinv"))):
            service_id = uuid.uuid4().hex
            service = {"id": service_id, "type": service_type, "name": name, "enabled": True}
            PROVIDERS.catalog_api.create_service(service_id, service)
            for region, region_urls in regions.items():
                self._create_endpoints(service_id, region, region_urls[number])

    def _create_endpoints(self, service_id: str, region: str, url: str) -> None:
        for interface in ("admin", "internal"):
            id_ = uuid.uuid4().hex
            endpoint = {
                "id": id_, "service_id": service_id, "region_id": region, "interface": interface, "url": url,
                "enabled": True,
            }  # fmt: skip
            PROVIDERS.catalog_api.create_endpoint(id_, endpoint)
