"""URLs with several hosts, and what Celery is given for Sentinels."""

from __future__ import annotations

import pytest

from dcsync.adapters.broker.redis_client import broker_options, broker_url, make_client
from dcsync.adapters.host.server_urls import sentinel_url, server_url
from dcsync.adapters.postgres.connections import url_parameters
from dcsync.settings import load
from dcsync.tasks.app import make_app

SENTINELS = "redis+sentinel://user:p%2Fw@one:26380,[::1],three/primary/2?sentinel_password=CANARY"


def test_hosts_keep_their_ports_and_brackets_are_removed() -> None:
    url = server_url("postgresql://user:p%40w@one:1,[fd00::1]:2,three/name?sslmode=require")
    assert url.hosts == (("one", 1), ("fd00::1", 2), ("three", None))
    assert (url.username, url.password, url.path, dict(url.query)) == ("user", "p@w", "name", {"sslmode": "require"})


@pytest.mark.parametrize("hosts", ["a,,b", "a:0", "a:65536", "a:port", "[::1", "::1]", "[::1]5", ":5", "a b"])
def test_hosts_nobody_can_dial_are_refused_without_being_shown(hosts: str) -> None:
    with pytest.raises(ValueError, match=r"contains|IPv6") as raised:
        server_url(f"postgresql://user:CANARY@{hosts}/name")
    assert "CANARY" not in str(raised.value)


def test_sentinels_have_their_usual_port_and_a_login_of_their_own() -> None:
    url = sentinel_url(SENTINELS)
    assert url.hosts == (("one", 26380), ("::1", 26379), ("three", 26379))
    assert (url.name, url.database, url.username, url.password) == ("primary", 2, "user", "p/w")
    assert (url.sentinel_username, url.sentinel_password, url.is_tls) == (None, "CANARY", False)


def test_celery_is_given_one_url_per_sentinel() -> None:
    assert broker_url(SENTINELS).split(";") == [
        "sentinel://user:p%2Fw@one:26380/2",
        "sentinel://user:p%2Fw@[::1]:26379/2",
        "sentinel://user:p%2Fw@three:26379/2",
    ]
    options = broker_options(SENTINELS)
    assert options["master_name"] == "primary"
    assert options["sentinel_kwargs"]["password"] == "CANARY"


def test_celery_is_given_any_other_url_as_it_is() -> None:
    assert broker_url("redis://:p@host/0") == "redis://:p@host/0"
    assert broker_options("redis://:p@host/0") == {}


def test_no_password_is_shown_by_what_holds_it() -> None:
    shown = repr(sentinel_url(SENTINELS)), repr(server_url(SENTINELS)), repr(make_client(SENTINELS))
    assert not any(secret in each for each in shown for secret in ("CANARY", "p/w"))


def test_celery_shows_no_password_of_sentinels() -> None:
    """`celery inspect conf` and Flower show the configuration, workers print the broker's URL."""
    with make_app(load({"DCSYNC_REDIS_URL": SENTINELS})) as app:
        shown = repr(app.conf.table(censored=True)), app.conf.humanize(), app.connection().as_uri(), app.bugreport()
    assert not any(secret in each for each in shown for secret in ("CANARY", "p/w", "p%2Fw"))


def test_several_hosts_reach_libpq_as_they_are_given() -> None:
    found = url_parameters("postgresql+psycopg2://u:p@one:1,two:2/name?target_session_attrs=any")
    assert (found["host"], found["port"], found["target_session_attrs"]) == ("one,two", "1,2", "any")
