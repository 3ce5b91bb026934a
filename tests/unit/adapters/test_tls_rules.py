"""URLs of dcsync's own servers: verified TLS is what an URL means that says nothing, and nothing weaker is taken."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from dcsync.adapters.host import tls_rules
from dcsync.model.errors import MisconfiguredError
from dcsync.settings import Settings, load
from dcsync.tasks.app import configuration

CA = Path("/etc/dcsync/ca/ca.pem")


def settings(**environ: str) -> Settings:
    return load({f"DCSYNC_{name.upper()}": value for name, value in environ.items()})


def broker(url: str, **environ: str) -> str:
    loaded = settings(redis_url=url, **environ).redis_url
    assert loaded is not None
    return loaded.get_secret_value()


def database(url: str, **environ: str) -> str:
    loaded = settings(database_url=url, **environ).database_url
    assert loaded is not None
    return loaded.get_secret_value()


# --- Redis -------------------------------------------------------------------------------------------------------


def test_a_broker_over_tls_is_verified_where_its_url_says_nothing() -> None:
    assert broker("rediss://:pw@r.example:6379/0") == "rediss://:pw@r.example:6379/0?ssl_cert_reqs=required"


def test_the_ca_file_counts_for_the_broker_unless_it_has_one_of_its_own() -> None:
    given = broker("rediss://r.example/0", ca_file=str(CA))
    own = broker("rediss://r.example/0?ssl_ca_certs=/own.pem", ca_file=str(CA))

    assert given.endswith(f"?ssl_cert_reqs=required&ssl_ca_certs={CA}")
    assert own == "rediss://r.example/0?ssl_ca_certs=/own.pem&ssl_cert_reqs=required"


@pytest.mark.parametrize("url", ["redis://:pw@r.example:6379/0", "redis://127.0.0.1"])
def test_a_broker_without_tls_stays_as_it_is_given(url: str) -> None:
    assert broker(url, ca_file=str(CA)) == url
    assert tls_rules.broker_tls(url) is None


@pytest.mark.parametrize(
    "parameters",
    [
        "ssl_cert_reqs=none",
        "ssl_cert_reqs=optional",
        "ssl_cert_reqs=CERT_NONE",
        "ssl_cert_reqs=",
        "ssl_cert_reqs=required&ssl_cert_reqs=none",
        "ssl_check_hostname=false",
        "ssl_check_hostname=0",
        "ssl_exclude_verify_flags=VERIFY_X509_STRICT",
        "ssl_ciphers=ALL",
        "ssl=true",
    ],
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_parameters_that_weaken_the_brokers_tls_are_refused_without_the_password(scheme: str, parameters: str) -> None:
    with pytest.raises(MisconfiguredError) as refused:
        broker(f"{scheme}://:s3cret@r.example/0?{parameters}")
    assert str(refused.value).startswith("DCSYNC_REDIS_URL: ssl")
    assert "s3cret" not in str(refused.value)


def test_sentinels_are_verified_like_redis_itself() -> None:
    url = "rediss+sentinel://:pw@s1.example:26379,s2.example:26379/dcsync/0"

    complete = tls_rules.verified_broker_url(url, ca_file=CA)

    assert complete == f"{url}?ssl_cert_reqs=required&ssl_ca_certs={CA}"
    assert tls_rules.broker_tls(complete) == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_ca_certs": str(CA),
    }
    for weak in (f"{url}?ssl_cert_reqs=none", f"{url.replace('rediss', 'redis')}?ssl_cert_reqs=required"):
        with pytest.raises(ValueError, match=r"^ssl_cert_reqs"):
            tls_rules.verified_broker_url(weak, ca_file=CA)


def test_celery_and_flower_are_told_to_verify() -> None:
    conf = configuration(settings(redis_url="rediss://r.example/0", ca_file=str(CA)))

    assert conf["broker_use_ssl"] == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_ca_certs": str(CA),
    }
    assert configuration(settings(redis_url="redis://r.example/0"))["broker_use_ssl"] is None


# --- PostgreSQL --------------------------------------------------------------------------------------------------

HERE = [
    "postgresql:///dcsync",
    "postgresql://u:pw@localhost/dcsync",
    "postgresql://u:pw@127.0.0.1:5432/dcsync",
    "postgresql://u:pw@127.8.9.1/dcsync?sslmode=disable",
    "postgresql+psycopg2://u:pw@[::1]:5432/dcsync?sslmode=prefer",
    "postgresql://u:pw@/dcsync?host=/run/postgresql",
    "postgresql://u:pw@%2Frun%2Fpostgresql/dcsync",
    "postgresql://u:p%40w@localhost:5432,127.0.0.1:5433/dcsync?target_session_attrs=read-write",
]
ELSEWHERE = [
    "postgresql://u:pw@db.example/dcsync",
    "postgresql://u:pw@db.example:5432/dcsync",
    "postgres://u:pw@10.0.0.5/dcsync",
    "postgresql://u:pw@[2001:db8::5]:5432/dcsync",
    "postgresql://u:pw@localhost:5432,db.example:5433/dcsync",
    "postgresql://u:pw@/dcsync?host=db.example:5432&host=localhost",
    "postgresql://u:pw@localhost/dcsync?hostaddr=10.0.0.5",
    "postgresql://u:pw@localhost.example/dcsync",
    "postgresql://u:pw@/dcsync?service=central",
]


@pytest.mark.parametrize("url", HERE)
def test_a_database_on_this_host_needs_no_tls(url: str) -> None:
    assert database(url, ca_file=str(CA)) == url
    assert not tls_rules.is_unverified_database(url)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_database_on_another_host_is_verified_where_its_url_says_nothing(url: str) -> None:
    complete = database(url, ca_file=str(CA))

    assert complete == f"{url}{'&' if '?' in url else '?'}sslmode=verify-full&sslrootcert={CA}"
    assert not tls_rules.is_unverified_database(complete)


@pytest.mark.parametrize("url", ELSEWHERE)
@pytest.mark.parametrize(
    "mode",
    ["sslmode=disable", "sslmode=allow", "sslmode=prefer", "sslmode=require", "sslmode=verify-ca", "ssl=true",
     "sslmode=verify-full&sslmode=disable", "requiressl=1", "sslmode="],
)  # fmt: skip
def test_a_weaker_sslmode_is_refused_unless_plaintext_is_allowed(url: str, mode: str) -> None:
    weak = f"{url}{'&' if '?' in url else '?'}{mode}"

    with pytest.raises(MisconfiguredError) as refused:
        database(weak)

    assert str(refused.value).startswith("DCSYNC_DATABASE_URL: sslmode must be verify-full")
    assert ":pw@" not in str(refused.value)
    assert database(weak, allow_plaintext="1") == weak
    assert tls_rules.is_unverified_database(weak)


def test_where_plaintext_is_allowed_a_verified_connection_stays_verified() -> None:
    url = "postgresql://db.example/dcsync?sslmode=verify-full&sslrootcert=/own.pem"

    assert database(url, allow_plaintext="1", ca_file=str(CA)) == url
    assert not tls_rules.is_unverified_database(url)


def test_without_a_ca_file_the_systems_certificates_count() -> None:
    complete = database("postgresql://db.example/dcsync")

    root = complete.partition("sslrootcert=")[2]
    assert root == "system" or Path(root).read_text(encoding="utf-8").count("BEGIN CERTIFICATE") > 1


@pytest.mark.parametrize("url", ["https://word", "mysql://db.example/x", "nonsense"])
def test_an_url_of_something_else_is_refused_as_such(url: str) -> None:
    with pytest.raises(MisconfiguredError, match="must be postgresql://"):
        database(url)
