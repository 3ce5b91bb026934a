"""Creates adapters from the settings and services from the adapters, without any logic of its own.

Services are created once per process, after any fork; creating them opens no connection.
"""

from __future__ import annotations

import random
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis
import structlog
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Engine

from dcsync.adapters.broker import redis_client
from dcsync.adapters.broker.locks import RedisLocks
from dcsync.adapters.broker.messenger import CeleryMessenger
from dcsync.adapters.broker.refused_logins import RedisRefusedLogins
from dcsync.adapters.broker.reporter import CeleryReports, Observer, StateReporter
from dcsync.adapters.broker.ticks import Ticks
from dcsync.adapters.cloud import central_rotation, http
from dcsync.adapters.cloud.bounded_json import JsonLimits
from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.endpoints import CentralEndpoints, ServiceUrls
from dcsync.adapters.cloud.keystone import Credentials
from dcsync.adapters.cloud.prober import HttpProber
from dcsync.adapters.cloud.tls import Trust
from dcsync.adapters.host.alarm_sinks import LogSink, WebhookSink
from dcsync.adapters.host.clock import elapsed_seconds
from dcsync.adapters.host.loop import LoopThread
from dcsync.adapters.host.own_servers import OwnServers, hosts_of
from dcsync.adapters.host.report_keys import ReportKeys
from dcsync.adapters.host.secret_file import SecretFile
from dcsync.adapters.host.tls_rules import is_unverified_database
from dcsync.adapters.postgres.alarms import SqlAlarmStore
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.clock import DatabaseClock
from dcsync.adapters.postgres.connections import STATEMENT_SECONDS
from dcsync.adapters.postgres.database import make_engine
from dcsync.adapters.postgres.history import SqlHistory
from dcsync.adapters.postgres.key_rotation import SqlKeyRotationStore
from dcsync.adapters.postgres.probes import SqlProbeStore
from dcsync.adapters.postgres.runs import SqlRunStore
from dcsync.adapters.postgres.silence import SqlSilenceStore
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.audit.endpoints import audited_types
from dcsync.audit.engine import LONGEST_AUDIT_INTERVALS, Audit, AuditLimits
from dcsync.audit.ports import AuditReports
from dcsync.audit.sweep import AuditSweep
from dcsync.audit.watch import CentralWatch
from dcsync.initial_sync.engine import InitialSync, SyncLimits
from dcsync.initial_sync.ports import Progress
from dcsync.initial_sync.preview import SyncPreview, preview
from dcsync.initial_sync.sweep import Sweep
from dcsync.model.errors import MisconfiguredError
from dcsync.model.messages import TaskName
from dcsync.model.operation import Intent
from dcsync.model.subcloud import EndpointType, Subcloud, SyncStatus
from dcsync.probe.availability import AvailabilityProbe
from dcsync.rotation import rotate_keys
from dcsync.runs.dispatch import SweepLimits
from dcsync.runs.logins import LoginLimits
from dcsync.runs.outcome import Outcome
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.ports import Owner
from dcsync.runs.runner import FollowUp, HintT, OnEnd, Runner, Work
from dcsync.settings import Settings
from dcsync.state.alarms import AlarmFeed
from dcsync.state.ports import AlarmSink
from dcsync.state.service import StateService
from dcsync.state.silence import SilenceLimits
from dcsync.state.silence_check import SilenceCheck

HINT_PATIENCE_SECONDS = 5.0
"""How long a hint may be unclaimed before the sweep checks whether it is still queued."""

CLOCK_SECONDS = 5.0
"""How long the database may take to say what time it is."""
LEAST_STATEMENT_SECONDS = 5.0
"""Statements over a whole fleet take a second or two, whatever a run may take."""

NEVER_SECONDS = 100 * 365 * 86400.0
"""The interval of audits that are made only on request."""

PERMIT_MARGIN_SECONDS = 30.0
"""How much longer than a request a login may take before its process counts as dead."""

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class SyncServices:
    """The services of a sync worker."""

    settings: Settings
    clock: DatabaseClock
    loop: LoopThread
    run_store: SqlRunStore
    history: SqlHistory
    sweep: Sweep
    runner: Runner
    initial_sync: InitialSync
    availability_probe: AvailabilityProbe | None
    """None: DCSYNC_PROBE_INTERVAL is 0."""
    key_rotation: rotate_keys.KeyRotation
    audit: Audit
    audit_sweep: AuditSweep
    central_watch: CentralWatch
    reporter: StateReporter

    def act_on(
        self, work: Work[HintT, Any], hint: HintT, *, then: FollowUp[Any, Any] | None = None, on_end: OnEnd
    ) -> Outcome:
        """Runs one hint on the event loop of this process, from another thread; returns its outcome. `on_end` is called
        on the event loop."""
        (outcome,) = self.loop.run(self.runner.run(work, [hint], then=then, on_end=on_end))
        return outcome


@dataclass(frozen=True)
class StateServices:
    """The services of a state worker."""

    settings: Settings
    service: StateService
    alarm_store: SqlAlarmStore
    alarm_feed: AlarmFeed
    silence: SilenceCheck


@dataclass(frozen=True)
class PreviewServices:
    """The services for previews in the command line; they write nothing."""

    audit: Audit
    locks: RedisLocks
    initial_sync: Callable[[Subcloud], SyncPreview]


def engine(settings: Settings, *, application_name: str, pool_size: int = 5) -> Engine:
    """Returns this process's engine for PostgreSQL; raises MisconfiguredError without DCSYNC_DATABASE_URL."""
    settings.required("database_url")
    if settings.database_url is None:
        raise MisconfiguredError("not set: DCSYNC_DATABASE_URL")
    url = settings.database_url.get_secret_value()
    if is_unverified_database(url):
        log.warning("PostgreSQL on another host is not verified, as DCSYNC_ALLOW_PLAINTEXT=1 allows")
    return make_engine(
        url,
        application_name=application_name,
        pool_size=pool_size,
        max_overflow=pool_size,
        # With the time an answer travels, less than a run may take: what hangs is then named as PostgreSQL.
        statement_seconds=max(LEAST_STATEMENT_SECONDS, min(STATEMENT_SECONDS, settings.run_deadline / 4)),
    )


def database_clock(settings: Settings, *, application_name: str) -> DatabaseClock:
    """The database's time, on a connection of its own: work that waits for a connection must not delay it."""
    settings.required("database_url")
    if settings.database_url is None:
        raise MisconfiguredError("not set: DCSYNC_DATABASE_URL")
    rows = make_engine(
        settings.database_url.get_secret_value(),
        application_name=f"{application_name} clock",
        pool_size=1,
        max_overflow=0,
        statement_seconds=CLOCK_SECONDS,
    )
    return DatabaseClock(rows)


def redis_connection(settings: Settings) -> redis.Redis:
    """Returns a Redis client for this process; raises MisconfiguredError without DCSYNC_REDIS_URL."""
    if settings.redis_url is None:
        raise MisconfiguredError("not set: DCSYNC_REDIS_URL")
    return redis_client.make_client(settings.redis_url.get_secret_value())


def ticks(settings: Settings) -> Ticks:
    """What beats and workers know of each other's periodic work."""
    return Ticks(redis_connection(settings))


def messenger(settings: Settings, app: Celery) -> CeleryMessenger:
    """Returns the sender of hints through `app`."""
    return CeleryMessenger(app, redis_connection(settings), hint_seconds=settings.sweep_interval)


def clouds(settings: Settings) -> HttpClouds:
    """Returns the access to the central cloud and subclouds; raises MisconfiguredError for a missing setting."""
    settings.required("central_auth_url", "password")
    if settings.central_auth_url is None or settings.password is None:
        raise MisconfiguredError("not set: DCSYNC_CENTRAL_AUTH_URL, DCSYNC_PASSWORD")
    return HttpClouds(
        credentials=Credentials(
            username=settings.username,
            password=settings.password.get_secret_value(),
            project_name=settings.project_name,
            user_domain_name=settings.user_domain_name,
            project_domain_name=settings.project_domain_name,
        ),
        password=_current(settings, "password"),
        previous_password=_current(settings, "previous_password"),
        refused_logins=refused_logins(settings),
        central=CentralEndpoints(
            auth=settings.central_auth_url,
            region=settings.central_region,
            dbsync=settings.central_dbsync_url,
            sysinv=settings.central_sysinv_url,
        ),
        subcloud_templates=_subcloud_templates(settings),
        allowed_networks=settings.allowed_networks,
        own_servers=own_servers(settings),
        ca_file=settings.ca_file,
        limits=http.Limits(
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            request_timeout=settings.request_timeout,
            max_reply_bytes=settings.max_reply_bytes,
            json=JsonLimits(
                max_values=settings.max_reply_values,
                max_depth=settings.max_reply_depth,
                max_records=settings.max_reply_records,
            ),
            max_run_bytes=settings.max_run_bytes,
            max_run_cpu=settings.max_run_cpu,
        ),
        max_age=settings.central_max_age,
    )


def refused_logins(settings: Settings) -> RedisRefusedLogins:
    """Returns the memory of refused logins that all processes share."""
    return RedisRefusedLogins(
        redis_connection(settings),
        limits=LoginLimits(
            hold_off=timedelta(seconds=settings.login_hold_off),
            permit=timedelta(seconds=settings.request_timeout + PERMIT_MARGIN_SECONDS),
        ),
    )


def _current(settings: Settings, secret: str) -> Callable[[], str] | None:
    """Returns a function that returns the secret, from its file as it is at that moment; None if it is not set."""
    found: SecretStr | None = getattr(settings, secret)
    if found is None:
        return None
    file = settings.file_of(secret)
    return found.get_secret_value if file is None else SecretFile(file, last=found.get_secret_value())


def sync_services(
    settings: Settings, app: Celery, *, clock: DatabaseClock, progress: Progress, worker: str
) -> SyncServices:
    """Returns the services of a worker that consumes `control`, `sync` and `audit`; `worker` is its name in history."""
    rows = engine(settings, application_name=f"dcsync {worker}", pool_size=20)
    run_store = SqlRunStore(rows)
    audit_store = SqlAuditStore(rows)
    reporter = StateReporter(reports(settings, app))
    http_clouds = clouds(settings)
    locks = RedisLocks(redis_connection(settings), ttl_seconds=settings.lock_ttl)
    loop = LoopThread()
    return SyncServices(
        settings=settings,
        clock=clock,
        loop=loop,
        run_store=run_store,
        history=SqlHistory(rows),
        sweep=Sweep(
            store=run_store,
            locks=locks,
            messenger=messenger(settings, app),
            limits=_sweep_limits(settings),
        ),
        runner=Runner(
            locks=locks,
            clouds=http_clouds,
            deadline_seconds=settings.run_deadline,
            now=clock.now,
            new_run_id=_new_run_id,
            log_fault=_log_fault,
        ),
        initial_sync=InitialSync(
            store=run_store,
            ownership=BatchedOwnership(run_store, locks, lock_ttl_seconds=settings.lock_ttl, elapsed=elapsed_seconds),
            clouds=http_clouds,
            progress=progress,
            limits=SyncLimits(
                users_at_once=settings.users_at_once,
                hold_off=timedelta(seconds=settings.hold_off),
                hold_off_max=timedelta(seconds=settings.hold_off_max),
                first_audit=timedelta(seconds=0 if settings.audit_interval else NEVER_SECONDS),
            ),
            now=clock.now,
            jitter=random.random,
            worker=worker,
        ),
        availability_probe=AvailabilityProbe(
            store=SqlProbeStore(rows),
            messenger=messenger(settings, app),
            prober=prober(settings),
            loop=loop,
            mark=Observer(clock.now).mark,
            report=reporter.report,
            interval=timedelta(seconds=settings.probe_interval),
        )
        if settings.probe_interval
        else None,
        key_rotation=key_rotation(settings, app, rows=rows, loop=loop, clock=clock, http_clouds=http_clouds),
        audit=audit_engine(
            settings,
            store=audit_store,
            locks=locks,
            http_clouds=http_clouds,
            loop=loop,
            reporter=reporter,
            clock=clock,
            worker=worker,
        ),
        audit_sweep=AuditSweep(
            store=audit_store,
            locks=locks,
            messenger=messenger(settings, app),
            limits=_sweep_limits(settings),
            reports=_audit_reports(reporter, Observer(clock.now)),
            longest=max(_audit_interval(settings) * LONGEST_AUDIT_INTERVALS, timedelta(seconds=settings.hold_off_max)),
        ),
        central_watch=CentralWatch(store=audit_store, clouds=http_clouds, loop=loop),
        reporter=reporter,
    )


def audit_engine(
    settings: Settings,
    *,
    store: SqlAuditStore,
    locks: RedisLocks,
    http_clouds: HttpClouds,
    loop: LoopThread,
    reporter: StateReporter,
    clock: DatabaseClock,
    worker: str = "",
) -> Audit:
    """Returns the audit engine, for audits and for previews."""
    return Audit(
        store=store,
        ownership=BatchedOwnership(store, locks, lock_ttl_seconds=settings.lock_ttl, elapsed=elapsed_seconds),
        clouds=http_clouds,
        loop=loop,
        reports=_audit_reports(reporter, Observer(clock.now)),
        limits=AuditLimits(
            preview_seconds=settings.run_deadline,
            users_at_once=settings.users_at_once,
            max_deletes=settings.max_deletes,
            interval=_audit_interval(settings),
            hold_off=timedelta(seconds=settings.hold_off),
            hold_off_max=timedelta(seconds=settings.hold_off_max),
            token_lifetime=timedelta(seconds=settings.token_lifetime),
        ),
        now=clock.now,
        new_run_id=_new_run_id,
        jitter=random.random,
        admin_password=settings.admin_password.get_secret_value() if settings.admin_password else None,
        worker=worker,
    )


def previews(settings: Settings, app: Celery, *, rows: Engine, clock: DatabaseClock) -> PreviewServices:
    """Returns the services for previews in the command line, on an event loop of its own process."""
    http_clouds, loop = clouds(settings), LoopThread()
    locks = RedisLocks(redis_connection(settings), ttl_seconds=settings.lock_ttl)

    def initial(known: Subcloud) -> SyncPreview:
        return loop.run(preview(clouds=http_clouds, subcloud=known, request_id=f"req-{_new_run_id()}"))

    return PreviewServices(
        audit=audit_engine(
            settings,
            store=SqlAuditStore(rows),
            locks=locks,
            http_clouds=http_clouds,
            loop=loop,
            reporter=StateReporter(reports(settings, app)),
            clock=clock,
        ),
        locks=locks,
        initial_sync=initial,
    )


def _audit_reports(reporter: StateReporter, observer: Observer) -> AuditReports:
    def report(
        region_name: str,
        endpoint_type: EndpointType,
        status: SyncStatus,
        *,
        alarmable: bool,
        reason: str | None = None,
        observed_at: datetime | None = None,
    ) -> None:
        reporter.report(
            observer.endpoint(
                region_name, endpoint_type, status, alarmable=alarmable, reason=reason, observed_at=observed_at
            )
        )

    return report


def key_rotation(
    settings: Settings, app: Celery, *, rows: Engine, loop: LoopThread, clock: DatabaseClock, http_clouds: HttpClouds
) -> rotate_keys.KeyRotation:
    """Returns the service that rotates and distributes the central cloud's keys."""
    command = settings.key_rotate_command
    timeout = settings.key_rotate_timeout
    return rotate_keys.KeyRotation(
        store=SqlKeyRotationStore(
            rows,
            carried_out_by=Intent(
                who="dcsync",
                host=socket.gethostname(),
                command="key rotation",
                keep=timedelta(days=settings.history_days),
            ),
        ),
        central=http_clouds,
        command=central_rotation.rotate_command(command, deadline_seconds=timeout) if command else None,
        new_key=central_rotation.new_key,
        loop=loop,
        trigger_audit_sweep=messenger(settings, app).send_audit_sweep,
        limits=rotate_keys.Limits(
            interval=timedelta(seconds=settings.key_rotation_interval),
            window=timedelta(seconds=settings.key_rotation_window),
            max_share_behind=settings.key_max_behind,
            token_lifetime=timedelta(seconds=settings.token_lifetime),
            max_active_keys=settings.max_active_keys,
            max_in_flight=settings.key_max_in_flight,
            hold_off=timedelta(seconds=settings.hold_off_max),
            claim_lifetime=timedelta(seconds=2 * (timeout + 4 * settings.request_timeout)),
            distribution_delay=timedelta(seconds=settings.central_max_age),
        ),
        now=clock.now,
        new_run_id=_new_run_id,
    )


def prober(settings: Settings) -> HttpProber:
    """Returns the prober of subclouds."""
    return HttpProber(
        subcloud_templates=_subcloud_templates(settings),
        allowed_networks=settings.allowed_networks,
        trust=Trust(settings.ca_file),
        own_servers=own_servers(settings),
        timeout_seconds=settings.probe_timeout,
    )


def own_servers(settings: Settings) -> OwnServers:
    """Returns what no subcloud's management IP may be the address of."""
    central = (settings.central_auth_url, settings.central_dbsync_url, settings.central_sysinv_url)
    servers = [
        *((url, "the central cloud") for url in central),
        *(
            (secret.get_secret_value(), server)
            for secret, server in (
                (settings.database_url, "dcsync's PostgreSQL"),
                (settings.redis_url, "dcsync's Redis"),
            )
            if secret is not None
        ),
    ]
    return OwnServers((host, server) for url, server in servers if url for host in hosts_of(url))


def _subcloud_templates(settings: Settings) -> ServiceUrls:
    return ServiceUrls(
        auth=settings.subcloud_auth_url,
        dbsync=settings.subcloud_dbsync_url,
        sysinv=settings.subcloud_sysinv_url,
    )


def state_services(settings: Settings, app: Celery, *, clock: DatabaseClock, worker: str) -> StateServices:
    """Returns the services of a worker that consumes `state`, and of the alarm tasks."""
    rows = engine(settings, application_name=f"dcsync {worker}", pool_size=5)
    alarm_store = SqlAlarmStore(rows)
    return StateServices(
        settings=settings,
        service=StateService(
            store=SqlStateStore(rows),
            messenger=messenger(settings, app),
            now=clock.now,
            endpoint_types=settings.endpoint_types,
            follow_ups=frozenset(audited_types()),
            keys=ReportKeys(settings.report_key_file),
        ),
        alarm_store=alarm_store,
        alarm_feed=AlarmFeed(store=alarm_store, sinks=alarm_sinks(settings), now=clock.now, jitter=random.random),
        silence=silence_check(settings, rows=rows, clock=clock),
    )


def silence_check(settings: Settings, *, rows: Engine, clock: DatabaseClock) -> SilenceCheck:
    """The check for silence, in every worker process."""
    swept = ticks(settings)
    return SilenceCheck(
        store=SqlSilenceStore(rows),
        seconds_since_sweep=lambda: swept.seconds_since(TaskName.SWEEP.value),
        windows=settings.windows,
        limits=silence_limits(settings),
        now=clock.now,
    )


def silence_limits(settings: Settings) -> SilenceLimits:
    """Follow from the intervals of what must happen again and again, and from what an operator set."""
    return SilenceLimits(
        unobserved_share=settings.unobserved_share,
        failing_after=timedelta(seconds=settings.failing_after),
        failing_attempts=settings.failing_attempts,
        retry_within=timedelta(seconds=settings.hold_off_max + settings.run_deadline),
        sweep_late_after=timedelta(seconds=settings.sweep_late_seconds),
        central_unreadable_after=timedelta(seconds=2 * settings.central_watch_interval),
        central_silent_after=timedelta(seconds=silent) if (silent := settings.central_silent_seconds) else None,
        key_window=timedelta(seconds=settings.key_rotation_window),
    )


def alarm_sinks(settings: Settings) -> list[AlarmSink]:
    """Returns the log sink, and the webhook sink if DCSYNC_ALARM_WEBHOOK_URL is set."""
    sinks: list[AlarmSink] = [LogSink()]
    if settings.alarm_webhook_url is not None:
        sinks.append(
            WebhookSink(settings.alarm_webhook_url.get_secret_value(), context=Trust(settings.ca_file).context)
        )
    return sinks


def reports(settings: Settings, app: Celery) -> CeleryReports:
    """Returns the sender of reports to the state service, signed if DCSYNC_REPORT_KEY_FILE is set."""
    return CeleryReports(app, redis_connection(settings), keys=ReportKeys(settings.report_key_file))


def _audit_interval(settings: Settings) -> timedelta:
    return timedelta(seconds=settings.audit_interval or NEVER_SECONDS)


def _sweep_limits(settings: Settings) -> SweepLimits:
    return SweepLimits(
        max_in_flight=settings.max_in_flight,
        lock_ttl=timedelta(seconds=settings.lock_ttl),
        patience=timedelta(seconds=HINT_PATIENCE_SECONDS),
        quarantine=timedelta(seconds=settings.hold_off_max),
    )


def _new_run_id() -> str:
    return str(uuid.uuid4())


def _log_fault(run: Owner, error: BaseException) -> None:
    log.error("internal fault in a run", region_name=run.subcloud.region_name, run_id=run.run_id, exc_info=error)
