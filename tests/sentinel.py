"""A primary, its replica and a Sentinel that watches them, as real processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from dcsync.local.binaries import find_redis
from dcsync.local.folder import server_user
from dcsync.local.servers import EmbeddedRedis, SavedState, free_port
from tests.conftest import data_folder
from tests.processes import wait_until

NAME = "primary"
SECONDS = 60.0


@dataclass(frozen=True)
class Watched:
    servers: tuple[EmbeddedRedis, EmbeddedRedis]
    port: int

    @property
    def password(self) -> str:
        return self.servers[0]._kept.password

    @property
    def url(self) -> str:
        """Names a Sentinel that is down as well."""
        return f"redis+sentinel://:{self.password}@127.0.0.1:1,127.0.0.1:{self.port}/{NAME}/0"

    def primary(self) -> int:
        """The port the Sentinel names."""
        with redis.Redis(port=self.port, decode_responses=True) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(NAME)[1])

    def fail_over(self) -> None:
        """Returns when the Sentinel names the other server, and the old primary follows it. In between, Redis takes
        writes at both, and loses those at the old one."""
        before = self.primary()
        with redis.Redis(port=self.port) as sentinel:
            wait_until(lambda: _asked(sentinel), seconds=SECONDS, what="the Sentinel accepts the failover")
        wait_until(lambda: self.primary() != before, seconds=SECONDS, what="the Sentinel names the other server")
        (old,) = [server for server in self.servers if server.port == before]
        with redis.Redis.from_url(old.url, decode_responses=True) as client:
            wait_until(lambda: _follows(client), seconds=SECONDS, what="the old primary follows the new one")


def _follows(client: redis.Redis) -> bool:
    try:
        return bool(client.info("replication")["role"] == "slave")
    except redis.ConnectionError:  # the Sentinel closes the connections of the server it demotes
        return False


def _asked(sentinel: redis.Redis) -> bool:
    try:
        return bool(sentinel.execute_command("SENTINEL", "FAILOVER", NAME))
    except redis.ResponseError:  # it does not know the replica yet
        return False


@contextmanager
def watched_by_sentinel() -> Iterator[Watched]:
    with data_folder() as one, data_folder() as two, data_folder() as three, EmbeddedRedis(one, fast=True) as primary:
        replica = EmbeddedRedis(two, fast=True)
        replica._saved_state = SavedState(password=primary._kept.password, port=free_port())
        replica._write_saved_state(replica._saved_state)
        with replica:
            for server in (primary, replica):
                with redis.Redis.from_url(server.url) as client:
                    client.config_set("masterauth", primary._kept.password)
            with redis.Redis.from_url(replica.url, decode_responses=True) as client:
                client.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
                wait_until(
                    lambda: client.info("replication")["master_link_status"] == "up",
                    seconds=SECONDS,
                    what="the replica has its copy",
                )
            with _sentinel(three, primary) as port:
                yield Watched((primary, replica), port)


@contextmanager
def _sentinel(folder: Path, primary: EmbeddedRedis) -> Iterator[int]:
    program, port, user = find_redis(), free_port(), server_user()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor {NAME} 127.0.0.1 {primary.port} 1\n"
        f"sentinel auth-pass {NAME} {primary._kept.password}\n"
        f"sentinel down-after-milliseconds {NAME} 2000\nsentinel failover-timeout {NAME} 5000\n"
    )
    if user is not None:
        for path in (folder, config):
            os.chown(path, user.uid, user.gid)
    with (folder / "sentinel.log").open("wb") as log:
        process = subprocess.Popen(
            [str(program.executable(f"{program.name}-server")), str(config), "--sentinel"],
            stdout=log,
            stderr=subprocess.STDOUT,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    try:
        with redis.Redis(port=port, decode_responses=True) as client:
            wait_until(lambda: _knows_replica(client), seconds=SECONDS, what="the Sentinel knows the replica")
        yield port
    finally:
        process.kill()
        process.wait()


def _knows_replica(client: redis.Redis) -> bool:
    try:
        return len(client.sentinel_slaves(NAME)) == 1
    except redis.RedisError:
        return False
