"""The context of every command: settings, stores, messages and the clock, each created at first use.

A command that only reads rows thus never connects to Redis. Tests replace any of them by fakes.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import click

from dcsync.cli.output import note
from dcsync.model.shown import View, view

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from celery import Celery
    from sqlalchemy import Engine

    from dcsync.adapters.host.own_servers import OwnServers
    from dcsync.adapters.postgres.clock import DatabaseClock
    from dcsync.bootstrap import PreviewServices
    from dcsync.cli.ports import Alarms, AuditRequests, CentralChecks, Inventory, Operations, RotationRequests, Triggers
    from dcsync.model.errors import DcsyncError
    from dcsync.model.operation import Intent
    from dcsync.model.reports import Report
    from dcsync.model.subcloud import Subcloud
    from dcsync.runs.logins import RefusedLogins
    from dcsync.settings import Settings
    from dcsync.state.ports import RejectedReports


ANSWER_SECONDS = 5
"""How long a command waits for the broker."""


class Operator:
    """The context of one command."""

    def __init__(self) -> None:
        self.debug = False
        self.wants_json = False
        self._closing = ExitStack()

    @cached_property
    def settings(self) -> Settings:
        """Returns the settings of the environment; URLs that are not set are those of a running `dcsync up`."""
        from dcsync import logs, settings
        from dcsync.local.endpoints import find_endpoints

        loaded = settings.load({**os.environ, **find_endpoints(os.environ)})
        logs.configure("DEBUG" if self.debug else "ERROR")
        return loaded

    def requires(self, *names: str) -> None:
        """Raises MisconfiguredError naming every one of these settings that is missing."""
        self.settings.required(*names)

    @property
    def database_url(self) -> str:
        url = self.settings.required("database_url").database_url
        assert url is not None
        return url.get_secret_value()

    @cached_property
    def engine(self) -> Engine:
        """Returns the database engine; it connects at the first query."""
        from dcsync.adapters.postgres.database import make_engine

        engine = make_engine(self.database_url, application_name="dcsync cli", pool_size=1)
        self._closing.callback(engine.dispose)
        return engine

    @cached_property
    def inventory(self) -> Inventory:
        """Returns the store of subclouds."""
        from dcsync.adapters.postgres.inventory import SqlInventory

        return SqlInventory(self.engine, endpoint_types=self.settings.endpoint_types)

    @cached_property
    def own_servers(self) -> OwnServers:
        """The central cloud and dcsync's own servers, none of which is a subcloud."""
        from dcsync import bootstrap

        return bootstrap.own_servers(self.settings)

    @cached_property
    def operations(self) -> Operations:
        """The record of what operators did."""
        from dcsync.adapters.postgres.operations import SqlOperations

        return SqlOperations(self.engine)

    @cached_property
    def alarm_store(self) -> Alarms:
        """Returns the store of alarms."""
        from dcsync.adapters.postgres.alarms import SqlAlarmStore

        return SqlAlarmStore(self.engine)

    @cached_property
    def central_checks(self) -> CentralChecks:
        """What the watch recorded of the central cloud."""
        from dcsync.adapters.postgres.silence import SqlSilenceStore

        return SqlSilenceStore(self.engine)

    @cached_property
    def refused_logins(self) -> RefusedLogins:
        """Returns the memory of refused logins that all processes share."""
        from dcsync import bootstrap

        return bootstrap.refused_logins(self.settings)

    @cached_property
    def rejected_reports(self) -> RejectedReports:
        """Returns the store of rejected reports."""
        from dcsync.adapters.postgres.rejected import SqlRejectedReports

        return SqlRejectedReports(self.engine)

    @cached_property
    def audit_store(self) -> AuditRequests:
        """Returns the store of audits."""
        from dcsync.adapters.postgres.audits import SqlAuditStore

        return SqlAuditStore(self.engine)

    @cached_property
    def key_rotation_store(self) -> RotationRequests:
        """Returns the store of key rotation."""
        from dcsync.adapters.postgres.key_rotation import SqlKeyRotationStore

        return SqlKeyRotationStore(self.engine)

    @cached_property
    def previews(self) -> PreviewServices:
        """Returns the services that determine what would be written, without writing it."""
        from dcsync import bootstrap

        rows = bootstrap.engine(self.settings, application_name="dcsync cli preview", pool_size=4)
        self._closing.callback(rows.dispose)
        return bootstrap.previews(self.settings, self.celery, rows=rows, clock=self.clock)

    @cached_property
    def celery(self) -> Celery:
        """Returns an app for sending only; it connects at the first message."""
        from dcsync.tasks.app import make_app

        app = make_app(self.settings.required("redis_url"))
        # Shorter than in workers: an operator should not wait for a broker that hangs.
        app.conf.broker_transport_options |= {"socket_timeout": ANSWER_SECONDS}
        self._closing.callback(app.close)
        return app

    @cached_property
    def messenger(self) -> Triggers:
        """Returns the sender of triggers to the workers."""
        from dcsync import bootstrap

        return bootstrap.messenger(self.settings, self.celery)

    def report(self, reports: Sequence[Report]) -> None:
        """Sends reports to the state workers; raises BrokerUnreachable when some may not have been sent."""
        from dcsync import bootstrap

        bootstrap.reports(self.settings, self.celery).send(reports)

    def hint_sweep(self) -> None:
        """Triggers a sweep; warns if the broker is unreachable, because the next scheduled sweep finds the rows."""
        self._hint(self.messenger.send_sweep)

    def hint_audit_sweep(self) -> None:
        """Triggers a sweep of the audits, like hint_sweep."""
        self._hint(self.messenger.send_audit_sweep)

    def hint_key_rotation(self) -> None:
        """Triggers the key rotation, like hint_sweep."""
        self._hint(self.messenger.send_key_rotation)

    def _hint(self, send: Callable[[], None]) -> None:
        from dcsync.model.errors import BrokerUnreachable

        try:
            send()
        except BrokerUnreachable as exc:
            note(f"warning: {self.explained(exc)}; stored all the same, the next sweep finds it")

    def explained(self, error: DcsyncError) -> str:
        """The error, and for a server that cannot be reached which it is, by which setting, and what to do next."""
        from dcsync.model.errors import BrokerUnreachable, DatabaseUnreachable, QueueFull

        if isinstance(error, QueueFull):
            return str(error)
        if isinstance(error, BrokerUnreachable):
            where, setting, server = self.settings.redis_url, "DCSYNC_REDIS_URL", "Redis"
        elif isinstance(error, DatabaseUnreachable):
            where, setting, server = self.settings.database_url, "DCSYNC_DATABASE_URL", "PostgreSQL"
        else:
            return str(error)
        if where is None:
            return str(error)
        return f"{error}; {setting} is {_without_login(where.get_secret_value())}: check that {server} runs there"

    @cached_property
    def name(self) -> str:
        """The operator's user name, for the history."""
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            return f"uid {os.getuid()}"

    @cached_property
    def clock(self) -> DatabaseClock:
        from dcsync.adapters.postgres.clock import DatabaseClock

        return DatabaseClock(self.engine)

    @cached_property
    def host(self) -> str:
        """Where the command runs, for the history."""
        return socket.gethostname()

    def intent(self) -> Intent:
        """What the running command is about to do, for the record of operations."""
        from dcsync.model.operation import Intent

        keep = timedelta(days=self.settings.history_days)
        return Intent(who=self.name, host=self.host, command=command_line(click.get_current_context()), keep=keep)

    def now(self) -> datetime:
        """The database's time: asked for once, then carried on. Raises DatabaseUnreachable."""
        return self.clock.now()

    def views(self, subclouds: Sequence[Subcloud]) -> list[View]:
        """What may be shown of these subclouds now."""
        now, windows = self.now(), self.settings.windows
        return [view(known, now=now, windows=windows) for known in subclouds]

    def clock_ahead(self) -> float | None:
        """Returns the seconds by which this host's clock is ahead of the database's; None where no database is
        configured, or answers."""
        from dcsync.model.errors import DatabaseUnreachable

        if self.settings.database_url is None:
            return None
        try:
            self.clock.measure()
        except DatabaseUnreachable:
            return None
        return self.clock.seconds_ahead()

    def monotonic(self) -> float:
        """Seconds, for measuring durations only."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    @property
    def is_at_terminal(self) -> bool:
        """Whether the command may ask for confirmation."""
        return sys.stdin.isatty() and sys.stdout.isatty()

    def close(self) -> None:
        self._closing.close()


def _without_login(url: str) -> str:
    """Returns scheme and hosts of a URL, with their ports; the scheme alone where the login may not end at the last @
    of these."""
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    is_sure = "@" in authority or "@" not in rest
    return f"{scheme}://{authority.rpartition('@')[2] if is_sure else '...'}"


def command_line(context: click.Context) -> str:
    """The subcommand with the options that were given, and those arguments that are one of a list of words. What else
    is given as an argument, names and files, is left out: it may be anything."""
    given = [
        word
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        for word in _as_given(parameter, context.params[parameter.name or ""])
    ]
    return " ".join([*context.command_path.split()[1:], *given])


def _as_given(parameter: click.Parameter, value: object) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [str(value)] if parameter.type.name == "choice" else []
    if not isinstance(parameter, click.Option) or parameter.hide_input:
        return []
    if parameter.is_flag:
        return [(parameter.opts if value else parameter.secondary_opts)[0]]
    values = value if isinstance(value, tuple) else (value,)
    return [word for each in values for word in (max(parameter.opts, key=len), str(each))]


pass_operator = click.make_pass_decorator(Operator, ensure=True)


def _chosen(context: click.Context, _parameter: click.Parameter, value: str) -> bool:
    context.ensure_object(Operator).wants_json = value == "json"
    return value == "json"


output_option = click.option(
    "-o",
    "--output",
    "as_json",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    is_eager=True,
    callback=_chosen,
    help="Table for operators, JSON for programs.",
)
"""Adds `-o table|json`; the command gets `as_json: bool`, and errors are printed as JSON as well."""
