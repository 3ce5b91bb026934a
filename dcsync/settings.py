"""The settings of dcsync, read from the environment once: name, unit, default and meaning.

Each setting is `DCSYNC_<NAME>`; a secret may be given as `DCSYNC_<NAME>_FILE`, the path of a file that contains it.
All problems, including unknown DCSYNC_ names, are reported together before anything is started.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dcsync.adapters.host import tls_rules
from dcsync.adapters.host.report_keys import read_keys
from dcsync.adapters.host.server_urls import is_sentinel, sentinel_url, server_url
from dcsync.model.addresses import Network
from dcsync.model.errors import MisconfiguredError
from dcsync.model.shown import Windows
from dcsync.model.subcloud import DEFAULT_ENDPOINT_TYPES, EndpointType

PREFIX = "DCSYNC_"
SECRETS = ("database_url", "redis_url", "password", "previous_password", "admin_password", "alarm_webhook_url")


def _setting(default: Any, description: str, **limits: Any) -> Any:
    return Field(default=default, description=description, **limits)


def _is_http_url(text: str) -> bool:
    parts = _url_parts(text)
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


def _is_redis_url(text: str) -> bool:
    if is_sentinel(text):
        try:
            return bool(sentinel_url(text))
        except ValueError:
            return False
    parts = _url_parts(text)
    return parts is not None and parts.scheme in ("redis", "rediss") and (parts.path.strip("/") or "0").isdecimal()


def _is_database_url(text: str) -> bool:
    try:
        parts = server_url(text)
    except ValueError:
        return False
    return parts.scheme.partition("+")[0] in ("postgresql", "postgres")


def _url_parts(text: str) -> SplitResult | None:
    """Returns None for an invalid URL: one with a space, an unclosed bracket or an invalid port."""
    try:
        parts = urlsplit(text)
        has_blank = any(char.isspace() for char in text)
        return None if has_blank or parts.port == 0 else parts
    except ValueError:
        return None


class Settings(BaseModel):
    """The settings of one process; nothing else reads the environment. Times are in seconds, sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # Whom dcsync trusts; first, because the URLs below are completed with it.
    ca_file: Path | None = _setting(
        None,
        "CA certificates to trust, PEM: clouds, webhook, PostgreSQL, Redis; re-read when it changes; default: the "
        "system's",
    )
    allow_plaintext: bool = _setting(
        False,
        "1: PostgreSQL on another host may be connected to without verified TLS; named in the log of each process",
    )

    # dcsync's own servers and files.
    database_url: SecretStr | None = _setting(
        None, "PostgreSQL 15 or newer: postgresql://user:password@host/database, or host1:5432,host2:5432 for several"
    )
    redis_url: SecretStr | None = _setting(
        None,
        "Redis 6.2 or newer, or Valkey: redis://:password@host:6379/0, "
        "or redis+sentinel://:password@host1:26379,host2:26379/name/0",
    )
    report_key_file: Path | None = _setting(
        None,
        "file with one or two keys, one per line, at least 32 characters each: reports to the state service are signed "
        "with the first, and those signed with neither are rejected; re-read when it changes; default: not signed",
    )
    remote_control: bool = _setting(
        True, "0: workers take no remote control (`celery inspect`, `celery control`, Flower's details of workers)"
    )
    data_dir: Path | None = _setting(None, "where `dcsync up` keeps its embedded servers' data")

    # The central cloud and dcsync's login, the same on every subcloud.
    central_auth_url: str | None = _setting(None, "Keystone of the central cloud, with /v3")
    central_dbsync_url: str | None = _setting(None, "central dcdbsync with /v1.0; default: from the catalog")
    central_sysinv_url: str | None = _setting(None, "central sysinv with /v1; default: from the catalog")
    central_region: str = _setting("RegionOne", "region of the central services in the catalog")
    username: str = _setting("dcmanager", "the user dcsync logs in as, on the central cloud and every subcloud")
    password: SecretStr | None = _setting(None, "its password; a file is read again before each login")
    previous_password: SecretStr | None = _setting(
        None,
        "its password before the last change; tried once where a subcloud refuses the new one, to deliver the new hash",
    )
    admin_password: SecretStr | None = _setting(
        None, "central password of user admin; set through Keystone where it differs, which updates the keyring as well"
    )
    project_name: str = _setting("services", "the project its token is scoped to")
    user_domain_name: str = _setting("Default", "the domain of the user")
    project_domain_name: str = _setting("Default", "the domain of the project")

    # Subclouds.
    subcloud_auth_url: str = _setting("https://{ip}:5001/v3", "template; IPv6 addresses are put in brackets")
    subcloud_dbsync_url: str = _setting("https://{ip}:8220/v1.0", "template")
    subcloud_sysinv_url: str = _setting("https://{ip}:6386/v1", "template")
    allowed_networks: tuple[Network, ...] = _setting(
        (),
        "comma separated networks of allowed management IPs; link-local, metadata, multicast and similar addresses are "
        "never allowed, loopback only if a loopback network is named; default: all others",
    )
    endpoint_types: tuple[EndpointType, ...] = _setting(
        DEFAULT_ENDPOINT_TYPES,
        "comma separated endpoint types that every subcloud has a status for, including platform and identity; "
        "any other is added to a subcloud by the first report about it",
    )

    # Times.
    sweep_interval: float = _setting(10, "time between two sweeps", ge=0.5, le=300)
    hold_off: float = _setting(60, "wait after the first failure; doubled after each further one", gt=0, le=86400)
    hold_off_max: float = _setting(900, "the longest wait between two attempts", gt=0, le=86400)
    login_hold_off: float = _setting(
        300,
        "wait before a refused password is tried again at the same cloud; doubled after each further refusal, up to 12 "
        "times this; within twice this time at most 3 logins are refused there",
        gt=0,
        le=3600,
    )
    lock_ttl: float = _setting(10, "time to live of a subcloud's lock, which its worker renews", ge=1, le=30)
    run_deadline: float = _setting(120, "time limit of one run on one subcloud", gt=1, le=3600)
    connect_timeout: float = _setting(10, "time limit for connecting to a cloud", gt=0, le=300)
    read_timeout: float = _setting(15, "time limit between two parts of a reply", gt=0, le=600)
    request_timeout: float = _setting(30, "time limit of one request", gt=0, le=600)
    central_max_age: float = _setting(5, "maximum age of the central records and keys a run uses", ge=0, le=300)
    audit_interval: float = _setting(
        1200, "time between two audits of one subcloud, plus or minus 10 %; 0: only on request", ge=0, le=604800
    )
    central_watch_interval: float = _setting(10, "time between two checks for central changes", ge=0.5, le=3600)
    probe_interval: float = _setting(
        30, "time between two probes of a subcloud, plus or minus 10 %; 0: none", ge=0, le=3600
    )
    availability_window: float = _setting(
        0,
        "how long a subcloud is shown as online after it was last seen; 0: four probe intervals, at least 60, "
        "and 900 without probes",
        ge=0,
        le=604800,
    )
    status_window: float = _setting(
        0,
        "how long the result of an audit is shown; 0: two audit intervals and a run, at least 60, and 86400 without "
        "periodic audits",
        ge=0,
        le=2592000,
    )
    report_window: float = _setting(
        86400, "how long the status of an endpoint type that others report is shown", gt=0, le=2592000
    )
    probe_timeout: float = _setting(5, "time limit of one probe; at most the interval", gt=0, le=60)
    key_rotation_interval: float = _setting(
        604800,
        "time between two rotations of the central cloud's fernet keys (168 h); 0: only on request",
        ge=0,
        le=31536000,
    )
    key_rotation_window: float = _setting(
        3600, "how long after a rotation differing keys are expected and raise no alarm", gt=0, le=604800
    )
    key_rotate_command: str | None = _setting(
        None,
        "command that rotates the central cloud's keys, run without a shell; default: write to its fernet_repo",
    )
    key_rotate_timeout: float = _setting(60, "time limit of that command", gt=0, le=600)
    token_lifetime: float = _setting(
        3600, "lifetime of the central cloud's tokens, the shortest time between two rotations", ge=0, le=604800
    )
    stop_grace: float = _setting(
        20, "how long a stopping worker lets its runs end before it gives them back", ge=0, le=600
    )

    # Limits.
    max_in_flight: int = _setting(
        2000, "runs dispatched or in progress at the same time, in all workers", ge=1, le=100_000
    )
    max_deletes: int = _setting(5, "records and grants one audit may delete without --allow-deletes", ge=0, le=100_000)
    max_active_keys: int = _setting(3, "keys in the central fernet_repo after dcsync rotated them", ge=3, le=100)
    key_max_in_flight: int = _setting(100, "subclouds that receive rotated keys at the same time", ge=1, le=100_000)
    key_max_behind: float = _setting(
        0.05, "share of the subclouds that may lack the current keys at a rotation", ge=0, le=1
    )
    unobserved_share: float = _setting(
        0.1,
        "share of managed subclouds without a recent status that raises an alarm; in a fleet of fewer than 10, "
        "one is enough",
        ge=0,
        lt=1,
    )
    failing_after: float = _setting(
        900, "how long an initial sync or an audit of a subcloud may fail before it raises an alarm", gt=0, le=604800
    )
    failing_attempts: int = _setting(
        5, "how often in a row an initial sync or an audit may fail before it raises an alarm", ge=1, le=1000
    )
    users_at_once: int = _setting(4, "users written to one subcloud at the same time", ge=1, le=16)
    max_reply_bytes: int = _setting(16 * 1024 * 1024, "the largest reply accepted from a cloud", ge=1024)
    history_days: float = _setting(
        30, "how long history, operations and cleared alarms are kept, of deleted subclouds too", gt=0
    )
    max_reply_values: int = _setting(
        500_000, "the most JSON values (array elements and object members) accepted in one reply", ge=1000
    )
    max_reply_records: int = _setting(20_000, "the most records accepted in one list of a cloud", ge=1)
    max_reply_depth: int = _setting(64, "the deepest nesting accepted in a reply", ge=8, le=500)
    max_run_bytes: int = _setting(64 * 1024 * 1024, "what one run may receive from a subcloud in all replies", ge=1024)
    max_run_cpu: float = _setting(10, "CPU seconds one run may spend on parsing replies", gt=0, le=3600)
    alarm_webhook_url: SecretStr | None = _setting(
        None, "where alarms are POSTed as JSON, http(s); default: only logged"
    )
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR")
    run_dir: Path | None = _setting(
        None, "folder of the processes' status records, for `dcsync service`; default: dcsync-UID in /tmp"
    )
    alive_file: Path | None = _setting(
        None, "file for health checks, touched every few seconds by a responsive worker or beat"
    )

    _files: dict[str, Path] = PrivateAttr(default_factory=dict)

    @field_validator("allowed_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            networks = tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())
        except ValueError as exc:
            raise ValueError(f"{exc}; must be networks such as 10.10.0.0/16, comma separated") from exc
        if mapped := [network for network in networks if getattr(network[0], "ipv4_mapped", None) is not None]:
            raise ValueError(f"{mapped[0]} is a network of IPv4 addresses; write it as such")
        return networks

    @field_validator("endpoint_types", mode="before")
    @classmethod
    def _split_endpoint_types(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        given = {part.strip() for part in value.split(",") if part.strip()}
        known = [str(type_) for type_ in EndpointType]
        if unknown := sorted(given.difference(known)):
            raise ValueError(f"unknown endpoint type {', '.join(unknown)}, allowed are {', '.join(known)}")
        if missing := [str(type_) for type_ in DEFAULT_ENDPOINT_TYPES if type_ not in given]:
            raise ValueError(f"must include {' and '.join(missing)}, allowed are {', '.join(known)}")
        return tuple(type_ for type_ in EndpointType if type_ in given)

    @field_validator("subcloud_auth_url", "subcloud_dbsync_url", "subcloud_sysinv_url")
    @classmethod
    def _has_ip(cls, value: str) -> str:
        rest = value.replace("{ip}", "")
        if rest == value or "{" in rest or "}" in rest or not _is_http_url(value.replace("{ip}", "10.0.0.1")):
            raise ValueError("must be an http(s) URL with {ip} in place of the management IP")
        return value.rstrip("/")

    @field_validator("central_auth_url", "central_dbsync_url", "central_sysinv_url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_http_url(value):
            raise ValueError("must be an http(s) URL")
        return value.rstrip("/") if value else None

    @field_validator("database_url")
    @classmethod
    def _is_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_database_url(value.get_secret_value()):
            raise ValueError("must be postgresql://user:password@host:5432/database, several hosts with commas")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        """Accepts URLs that both Celery and redis-py support."""
        if value is not None and not _is_redis_url(value.get_secret_value()):
            raise ValueError(
                "must be redis://:password@host:6379/0, or rediss:// for TLS, "
                "or redis+sentinel://:password@host:26379,host:26379/name/0"
            )
        return value

    @field_validator("report_key_file")
    @classmethod
    def _has_keys(cls, value: Path | None) -> Path | None:
        if value is not None:
            read_keys(value)
        return value

    @field_validator("database_url", "redis_url")
    @classmethod
    def _verifies_server(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        """Completes the URL with the TLS parameters that verify the server, and refuses what would weaken them."""
        if value is None:
            return None
        url, ca_file = value.get_secret_value(), info.data.get("ca_file")
        if info.field_name == "redis_url":
            return SecretStr(tls_rules.verified_broker_url(url, ca_file=ca_file))
        allowed = info.data.get("allow_plaintext", False)
        return SecretStr(tls_rules.verified_database_url(url, ca_file=ca_file, allow_plaintext=allowed))

    @field_validator("alarm_webhook_url")
    @classmethod
    def _is_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_http_url(value.get_secret_value()):
            raise ValueError("must be an http(s) URL")
        return value

    @field_validator("key_rotate_command")
    @classmethod
    def _is_command(cls, value: str | None) -> str | None:
        if value is not None and not shlex.split(value):
            raise ValueError("must name a command")
        return value

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.connect_timeout <= self.request_timeout <= self.run_deadline:
            raise ValueError("DCSYNC_CONNECT_TIMEOUT <= DCSYNC_REQUEST_TIMEOUT <= DCSYNC_RUN_DEADLINE must hold")
        if 0 < self.probe_interval < self.probe_timeout:
            raise ValueError("DCSYNC_PROBE_TIMEOUT must not exceed DCSYNC_PROBE_INTERVAL")
        if self.max_reply_bytes > self.max_run_bytes:
            raise ValueError("DCSYNC_MAX_REPLY_BYTES must not exceed DCSYNC_MAX_RUN_BYTES")
        if self.hold_off > self.hold_off_max:
            raise ValueError("DCSYNC_HOLD_OFF must not exceed DCSYNC_HOLD_OFF_MAX")
        return self

    @property
    def visibility_timeout(self) -> int:
        """Seconds after which an unacknowledged message is redelivered; longer than any task runs."""
        return int(max(self.run_deadline, self.lock_ttl) * 2) + 60

    @property
    def windows(self) -> Windows:
        """How long what was observed is shown: what is set, or what follows from the interval of whoever observes."""
        by_probes = max(60.0, 4 * self.probe_interval + self.probe_timeout) if self.probe_interval else 900.0
        by_audits = max(60.0, 2 * self.audit_interval + self.run_deadline) if self.audit_interval else 86400.0
        return Windows(
            availability=timedelta(seconds=self.availability_window or by_probes),
            audited=timedelta(seconds=self.status_window or by_audits),
            reported=timedelta(seconds=self.report_window),
        )

    @property
    def sweep_late_seconds(self) -> float:
        """After this long without a sweep that ended well, it is late."""
        return max(60.0, 6 * self.sweep_interval)

    @property
    def central_silent_seconds(self) -> float:
        """The central cloud was not checked for too long; 0: it is not checked periodically."""
        return max(60.0, 5 * self.central_watch_interval) if self.audit_interval else 0.0

    @property
    def run_folder(self) -> Path:
        """DCSYNC_RUN_DIR, or by default a folder of this user."""
        return self.run_dir or Path(tempfile.gettempdir()) / f"dcsync-{os.geteuid()}"

    def file_of(self, secret: str) -> Path | None:
        """Returns the file that this secret was read from; None if the environment gave the secret itself."""
        return self._files.get(secret)

    def required(self, *names: str) -> Self:
        """Returns the settings; raises MisconfiguredError naming those of `names` that are not set."""
        missing = [PREFIX + name.upper() for name in names if getattr(self, name) is None]
        if missing:
            servers = {"DCSYNC_DATABASE_URL", "DCSYNC_REDIS_URL"}.intersection(missing)
            hint = (
                "set it, or run `dcsync up`, which starts servers of its own"
                if servers
                else "`dcsync config show` lists all settings"
            )
            raise MisconfiguredError(f"not set: {', '.join(missing)}; {hint}")
        return self

    def shown(self) -> dict[str, str]:
        """Returns every setting as text, secrets masked."""
        return {PREFIX + name.upper(): shown(getattr(self, name)) for name in sorted(type(self).model_fields)}

    def typed(self) -> dict[str, object]:
        """Returns every setting as JSON has it: numbers, lists, null where it is not set; secrets masked."""
        return {PREFIX + name.upper(): _typed(getattr(self, name)) for name in sorted(type(self).model_fields)}


def _typed(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return [str(part) for part in value] if isinstance(value, tuple) else str(value)


def shown(value: object) -> str:
    """Returns a setting's value as its environment variable would be written."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Returns the settings of this process; raises MisconfiguredError that lists every problem."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    files: dict[str, Path] = {}
    problems: list[str] = []
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or text == "":
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name.removesuffix("_file") in SECRETS and name.endswith("_file"):
            try:
                secret = Path(text).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as exc:
                problems.append(f"{variable}: {exc.__class__.__name__}: {text} cannot be read")
                continue
            if not secret:
                problems.append(f"{variable}: {text} is empty")
            elif name.removesuffix("_file") not in values:
                values[name.removesuffix("_file")] = secret
                files[name.removesuffix("_file")] = Path(text)
        elif name in Settings.model_fields:
            values[name] = text
        else:
            problems.append(f"{variable}: unknown setting")
    try:
        settings = Settings(**(values | overrides))
    except ValidationError as exc:
        for error in exc.errors(include_input=False, include_url=False, include_context=False):
            where = PREFIX + "_".join(str(part) for part in error["loc"]).upper() if error["loc"] else ""
            problems.append(f"{where}: {error['msg'].removeprefix('Value error, ')}".lstrip(": "))
    if problems:
        raise MisconfiguredError("; ".join(problems))
    settings._files.update((name, path) for name, path in files.items() if name not in overrides)
    return settings
