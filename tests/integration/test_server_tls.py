"""Every TLS client of dcsync, and real servers with certificates that are good, self-signed, expired or another's."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy
from flower.utils.broker import Broker
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from dcsync import bootstrap
from dcsync.adapters.host.alarm_sinks import SinkUnreachable
from dcsync.adapters.postgres import database
from dcsync.model.errors import DatabaseUnreachable
from dcsync.settings import Settings, load
from dcsync.state.ports import AlarmNotice
from dcsync.tasks.app import make_app
from tests.certificates import Authority
from tests.reports import at
from tests.tls_front import TlsFront

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with the openssl command")

BAD = ["self-signed", "wrong host", "expired"]
each_bad_certificate = pytest.mark.parametrize("kind", BAD)


@dataclass(frozen=True)
class Certificates:
    ca: Path
    """The CA that clients trust."""
    of: dict[str, Path]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ours, own = Authority(folder, "ours"), Authority(folder, "own")
    own_and_key = folder / "self-signed.both"
    own_and_key.write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
    return Certificates(
        ours.certificate,
        {
            "good": ours.sign("127.0.0.1"),
            "self-signed": own_and_key,
            "wrong host": ours.sign("127.0.0.99"),
            "expired": ours.sign("127.0.0.1", days=-1),
        },
    )


Client = Callable[[Settings], object]


# --- Redis -------------------------------------------------------------------------------------------------------


def our_client(settings: Settings) -> object:
    return bootstrap.redis_connection(settings).ping()


def celery_broker(settings: Settings) -> object:
    with make_app(settings).connection_for_write() as connection:
        return connection.ensure_connection(max_retries=1, interval_start=0).default_channel.client.ping()


def celery_events(settings: Settings) -> object:
    """As Flower reads events, and as workers consume."""
    with make_app(settings).connection_for_read() as connection:
        return connection.ensure_connection(max_retries=1, interval_start=0).default_channel.client.ping()


def flowers_queue_lengths(settings: Settings) -> object:
    app = make_app(settings)
    uri = app.connection().as_uri(include_password=True)
    found = Broker(uri, broker_options=app.conf.broker_transport_options, broker_use_ssl=app.conf.broker_use_ssl)
    return asyncio.run(found.queues(["control"])) == [{"name": "control", "messages": 0}]


REDIS_CLIENTS: list[Client] = [our_client, celery_broker, celery_events, flowers_queue_lengths]
each_redis_client = pytest.mark.parametrize("client", REDIS_CLIENTS)


@contextmanager
def tls_redis(redis_url: str, certificate: Path) -> Iterator[tuple[TlsFront, str]]:
    plain = urlsplit(redis_url)
    assert plain.port is not None
    with TlsFront(plain.port, certificate=certificate) as front:
        yield front, f"rediss://:{plain.password}@127.0.0.1:{front.port}/0"


@each_redis_client
def test_redis_with_a_good_certificate_is_used(client: Client, certificates: Certificates, redis_url: str) -> None:
    with tls_redis(redis_url, certificates.of["good"]) as (front, url):
        assert client(load({"DCSYNC_REDIS_URL": url, "DCSYNC_CA_FILE": str(certificates.ca)}))
        assert client(load({"DCSYNC_REDIS_URL": f"{url}?ssl_ca_certs={certificates.ca}"})), "a CA of its own"
        assert front.received > 0


@each_bad_certificate
@each_redis_client
def test_redis_with_a_bad_certificate_is_never_sent_the_password(
    client: Client, kind: str, certificates: Certificates, redis_url: str
) -> None:
    with tls_redis(redis_url, certificates.of[kind]) as (front, url):
        settings = load({"DCSYNC_REDIS_URL": url, "DCSYNC_CA_FILE": str(certificates.ca)})
        with pytest.raises((OperationalError, redis.exceptions.ConnectionError)) as refused:
            client(settings)
        assert "certificate verify failed" in _texts(refused.value)
        assert (front.received, front.connections > 0) == (0, True)


def _texts(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return " <- ".join(texts)


# --- PostgreSQL --------------------------------------------------------------------------------------------------


def engine_of_workers(settings: Settings) -> object:
    rows = bootstrap.engine(settings, application_name="dcsync test")
    try:
        with database.database_errors(), rows.connect() as connection:
            return connection.scalar(sqlalchemy.text("SELECT 1"))
    finally:
        rows.dispose()


def check_of_the_monitor(settings: Settings) -> object:
    database.check(_secret(settings.database_url), seconds=5)
    return True


def schema_revision(settings: Settings) -> object:
    return database.current_revision(_secret(settings.database_url))


def _secret(value: SecretStr | None) -> str:
    assert value is not None
    return value.get_secret_value()


POSTGRESQL_CLIENTS: list[Client] = [engine_of_workers, check_of_the_monitor, schema_revision]
each_postgresql_client = pytest.mark.parametrize("client", POSTGRESQL_CLIENTS)


@contextmanager
def tls_postgresql(database_url: str, certificate: Path) -> Iterator[tuple[TlsFront, str]]:
    plain = urlsplit(database_url)
    assert plain.port is not None
    with TlsFront(plain.port, certificate=certificate, postgresql=True) as front:
        # 127.0.0.1 is this host, where TLS must be asked for.
        yield front, database_url.replace(f":{plain.port}/", f":{front.port}/") + "?sslmode=verify-full"


@each_postgresql_client
def test_postgresql_with_a_good_certificate_is_used(
    client: Client, certificates: Certificates, database_url: str
) -> None:
    with tls_postgresql(database_url, certificates.of["good"]) as (front, url):
        assert client(load({"DCSYNC_DATABASE_URL": url, "DCSYNC_CA_FILE": str(certificates.ca)}))
        assert client(load({"DCSYNC_DATABASE_URL": f"{url}&sslrootcert={certificates.ca}"})), "a CA of its own"
        assert front.received > 0


@each_bad_certificate
@each_postgresql_client
def test_postgresql_with_a_bad_certificate_is_sent_nothing(
    client: Client, kind: str, certificates: Certificates, database_url: str
) -> None:
    with tls_postgresql(database_url, certificates.of[kind]) as (front, url):
        with pytest.raises(DatabaseUnreachable, match=r"certificate|does not match host"):
            client(load({"DCSYNC_DATABASE_URL": url, "DCSYNC_CA_FILE": str(certificates.ca)}))
        assert (front.received, front.connections > 0) == (0, True)


def test_plaintext_that_is_allowed_is_named_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql://u:s3cret@db.invalid/dcsync?sslmode=disable"

    bootstrap.engine(load({"DCSYNC_DATABASE_URL": url, "DCSYNC_ALLOW_PLAINTEXT": "1"}), application_name="t").dispose()

    logged = capsys.readouterr()
    assert "DCSYNC_ALLOW_PLAINTEXT=1" in logged.out + logged.err
    assert "s3cret" not in logged.out + logged.err


# --- the webhook -------------------------------------------------------------------------------------------------


@contextmanager
def webhook_behind_tls(certificate: Path) -> Iterator[tuple[TlsFront, str, list[bytes]]]:
    bodies: list[bytes] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with TlsFront(server.server_address[1], certificate=certificate) as front:
            yield front, f"https://127.0.0.1:{front.port}/token", bodies
    finally:
        server.shutdown()
        server.server_close()


def deliver(url: str, ca: Path) -> None:
    settings = load({"DCSYNC_ALARM_WEBHOOK_URL": url, "DCSYNC_CA_FILE": str(ca)})
    (_, sink) = bootstrap.alarm_sinks(settings)
    sink.send(
        [
            AlarmNotice(
                alarm_id="280.001",
                entity="subcloud=a",
                severity="critical",
                reason_text="a is offline",
                raised_at=at(0),
                cleared_at=None,
            )
        ]
    )


def test_a_webhook_with_a_good_certificate_gets_alarms(certificates: Certificates) -> None:
    with webhook_behind_tls(certificates.of["good"]) as (_, url, bodies):
        deliver(url, certificates.ca)
    assert b"280.001" in bodies[0]


@each_bad_certificate
def test_a_webhook_with_a_bad_certificate_gets_nothing(kind: str, certificates: Certificates) -> None:
    with webhook_behind_tls(certificates.of[kind]) as (front, url, bodies):
        with pytest.raises(SinkUnreachable, match="Certificate"):
            deliver(url, certificates.ca)
        assert (front.received, front.connections > 0, bodies) == (0, True, [])
