"""Embedded PostgreSQL and Valkey: they keep their data, want a password, come back after a crash, never outlive us."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dcsync.local.binaries import accessible_program, find_postgres, find_redis
from dcsync.local.endpoints import find_endpoints, remove_endpoints, up_lock, write_endpoints
from dcsync.local.folder import User, default_data_dir, inaccessible_folder, make_data_dir, make_folder, server_user
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis, Server, end_orphan, free_port
from dcsync.model.errors import LocalProcessFailed, MisconfiguredError, RefusedByGuard
from tests.conftest import data_folder
from tests.processes import REPOSITORY, Processes, wait_until

KINDS = [EmbeddedPostgres, EmbeddedRedis]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs its servers as another user")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest, own_data_dir: Path) -> Iterator[Server]:
    with request.param(own_data_dir, fast=True) as started:
        yield started


def _write(server: Server, value: str) -> None:
    if isinstance(server, EmbeddedRedis):
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", value)
        return
    with contextlib.closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        cursor.execute("INSERT INTO kept VALUES (%s)", (value,))


def _read(server: Server) -> str:
    if isinstance(server, EmbeddedRedis):
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            return str(client.get("kept"))
    with contextlib.closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM kept")
        row = cursor.fetchone()
        assert row is not None
        return str(row[0])


def _again(server: Server) -> Server:
    """The same data folder, as another process would open it."""
    return type(server)(server.data_dir, fast=True)


def test_data_port_and_password_survive_a_restart(server: Server) -> None:
    _write(server, "still here")
    url = server.url
    server.stop()
    with _again(server) as second:
        assert second.url == url
        assert _read(second) == "still here"


def test_killed_server_starts_again_on_its_port_with_its_data(server: Server) -> None:
    _write(server, "still here")
    url, first = server.url, server.pid
    server.kill()
    assert server.pid is None
    assert server.exit_code == -signal.SIGKILL
    server.start()
    assert server.pid not in {None, first}
    assert server.url == url
    assert _read(server) == "still here"


def test_port_that_somebody_took_meanwhile_is_replaced(server: Server) -> None:
    _write(server, "still here")
    server.stop()
    other = EmbeddedRedis if isinstance(server, EmbeddedPostgres) else EmbeddedPostgres
    with data_folder() as folder:
        squatter = other(folder, fast=True)
        folder.joinpath(f"{other.name}.json").write_text(f'{{"password": "p", "port": {server.port}}}')
        with squatter, _again(server) as second:
            assert squatter.port == server.port
            assert second.port != server.port
            assert _read(second) == "still here"


def test_folder_in_use_is_refused(server: Server) -> None:
    with pytest.raises(RefusedByGuard, match=f"process {os.getpid()}"):
        _again(server).start()
    _write(server, "undisturbed")


def test_stopped_server_leaves_no_process_and_may_be_stopped_again(server: Server) -> None:
    assert server.pid is not None
    process = psutil.Process(server.pid)
    family = [process, *process.children(recursive=True)]
    server.stop()
    server.stop()
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_server_that_does_not_listen_to_signals_is_killed(server: Server) -> None:
    assert server.pid is not None
    psutil.Process(server.pid).suspend()
    type(server).stop_signals, kept = ((signal.SIGTERM, 0.2),), type(server).stop_signals
    try:
        server.stop()
    finally:
        type(server).stop_signals = kept
    assert server.pid is None


def test_strangers_are_not_let_in(server: Server) -> None:
    if isinstance(server, EmbeddedRedis):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)).ping()
    else:
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(host="127.0.0.1", port=server.port, user="dcsync", dbname="dcsync", password="guessed")


def test_servers_listen_on_loopback_only(server: Server) -> None:
    assert server.pid is not None
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections("all") if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]


def test_password_is_neither_on_a_command_line_nor_in_a_log_nor_readable_by_others(server: Server) -> None:
    password = server.url.split(":")[2].partition("@")[0]
    assert server.pid is not None
    assert password not in repr(server)
    assert password not in " ".join(psutil.Process(server.pid).cmdline())
    assert password not in server.log_file.read_text()
    for folder, _, names in os.walk(server.data_dir):
        for file in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # a server at work puts files away
                holds_it = file.stat().st_size < 100_000 and password.encode() in file.read_bytes()
                assert not holds_it or stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_redis_keeps_everything_and_evicts_nothing(own_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(own_redis.url, decode_responses=True) as client:
        wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
        assert client.config_get(*wanted) == wanted


def test_postgres_is_safe_against_power_cuts_unless_asked_to_be_fast(own_data_dir: Path) -> None:
    for fast, word in ((False, "on"), (True, "off")):
        with (
            EmbeddedPostgres(own_data_dir, fast=fast) as server,
            contextlib.closing(psycopg2.connect(server.url)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SHOW fsync")
            assert cursor.fetchone() == (word,)


ORPHAN_MAKER = """
    import sys, time
    from pathlib import Path
    from dcsync.local import servers
    server = getattr(servers, sys.argv[1])(Path(sys.argv[2]), fast=True)
    server.start()
    print("serving", server.pid, flush=True)
    time.sleep(600)
"""


def _lives(process: psutil.Process) -> bool:
    """One that is dead counts as gone, whether or not somebody has taken note of it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_server_ends_when_its_parent_is_killed_and_the_data_is_there(
    kind: type[Server], own_data_dir: Path, processes: Processes
) -> None:
    code = textwrap.dedent(ORPHAN_MAKER)
    parent = processes.start(sys.executable, "-c", code, kind.__name__, own_data_dir, name="parent", ready="serving")
    orphan = psutil.Process(int(parent.output().split()[1]))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    with kind(own_data_dir, fast=True) as server:
        _write(server, "new parent")
        assert _read(server) == "new parent"
        wait_until(lambda: not _lives(orphan), seconds=60, what="the orphan is gone")


def test_orphan_that_was_not_leashed_is_ended_before_the_next_start(server: Server) -> None:
    """As after a crash on a system without a leash: the server runs, its parent and the parent's lock are gone."""
    _write(server, "from before")
    assert server.pid is not None
    orphan = psutil.Process(server.pid)
    server._lock.give_back()
    with _again(server) as second:
        assert second.pid != orphan.pid
        assert _read(second) == "from before"
        assert not _lives(orphan)


@pytest.mark.parametrize("content", ["{own}\n/elsewhere\n", "", "rubbish"])
def test_stale_pid_file_does_not_keep_postgres_down(own_data_dir: Path, content: str) -> None:
    with EmbeddedPostgres(own_data_dir, fast=True) as server:
        _write(server, "still here")
    own = psutil.Process().pid
    (server.folder / "postmaster.pid").write_text(content.format(own=own))
    with server:
        assert _read(server) == "still here"


def test_process_of_somebody_else_in_a_pid_file_is_left_alone(tmp_path: Path) -> None:
    pid_file = tmp_path / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    end_orphan(pid_file, folder=tmp_path, death_signal=signal.SIGKILL)
    assert not pid_file.exists()


def test_interrupted_initdb_is_done_again(own_data_dir: Path) -> None:
    half = own_data_dir / "postgresql.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    with EmbeddedPostgres(own_data_dir, fast=True) as server:
        _write(server, "made")
    assert not half.exists()


def test_data_of_another_major_version_is_refused_and_kept(own_data_dir: Path) -> None:
    with EmbeddedPostgres(own_data_dir, fast=True) as server:
        pass
    version = server.folder / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(MisconfiguredError, match="was made by PostgreSQL 9"):
        server.start()
    assert version.read_text() == "9\n"
    version.write_text("18\n")
    with server:
        assert server.pid is not None


def test_damaged_password_file_is_an_error_that_says_what_to_do(own_data_dir: Path) -> None:
    (own_data_dir / "valkey.json").write_text("{")
    with pytest.raises(MisconfiguredError, match=r"valkey\.json cannot be read"):
        EmbeddedRedis(own_data_dir).start()


def test_server_that_cannot_start_is_an_error_with_the_end_of_its_log(own_data_dir: Path) -> None:
    with EmbeddedRedis(own_data_dir, fast=True) as server:
        pass
    (aof,) = (server.folder / "appendonlydir").glob("*.manifest")
    aof.write_text("nonsense\n")
    with pytest.raises(LocalProcessFailed, match="AOF manifest"):
        server.start()
    assert server.pid is None


def test_folder_with_a_space_serves(own_data_dir: Path) -> None:
    for kind in KINDS:
        with kind(own_data_dir / "a folder", fast=True) as server:
            _write(server, "x")


# --- which programs ------------------------------------------------------------------------------------------------


def test_programs_on_the_path_serve_where_the_wheels_are_missing(own_data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "valkey-server").symlink_to(find_redis().executable("valkey-server"))
    program = find_redis(path=str(tmp_path), wheels=False)
    assert program.name == "valkey"
    assert program.version.count(".") == 2
    with EmbeddedRedis(own_data_dir, program=find_redis(), fast=True) as server:
        _write(server, "x")


def test_postgres_of_the_system_serves_as_well(own_data_dir: Path) -> None:
    try:
        program = find_postgres(wheels=False)
    except MisconfiguredError:
        pytest.skip("no PostgreSQL of the system's own here")
    with EmbeddedPostgres(own_data_dir, program=program, fast=True) as server:
        _write(server, program.version)
        assert _read(server) == program.version


def test_no_programs_at_all_is_an_error_that_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="dcsync\\[local\\]"):
        find_redis(path=str(tmp_path), wheels=False)


# --- root and other users ----------------------------------------------------------------------------------------


@as_root
def test_servers_of_root_run_as_nobody(server: Server) -> None:
    assert server.pid is not None
    assert psutil.Process(server.pid).username() == "nobody"


@as_root
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_programs_that_nobody_cannot_reach_are_copied_into_the_data_folder(
    kind: type[Server], own_data_dir: Path, tmp_path: Path
) -> None:
    found = find_postgres() if kind is EmbeddedPostgres else find_redis()
    hidden = tmp_path / "venv"
    for part in found.parts:
        shutil.copytree(found.root / part, hidden / part, symlinks=True)
    hidden.chmod(0o700)
    program = replace(found, root=hidden, folder=hidden / found.folder.relative_to(found.root))
    for _ in range(2):
        with kind(own_data_dir, program=program, fast=True) as server:
            assert server.pid is not None
            assert Path(psutil.Process(server.pid).exe()).is_relative_to(own_data_dir / "bin")
    older = own_data_dir / "bin" / f"{program.name}-0.1"
    older.mkdir()
    accessible_program(program, user=server_user(), copies=own_data_dir / "bin")
    assert not older.exists()


@as_root
def test_closed_folder_above_the_data_is_named_and_not_opened(own_data_dir: Path) -> None:
    closed = own_data_dir / "home"
    closed.mkdir(mode=0o700)
    with pytest.raises(MisconfiguredError, match=f"nobody has no access to {closed}:"):
        EmbeddedRedis(closed / "data").start()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_first_closed_folder_on_the_way_is_found(tmp_path: Path) -> None:
    stranger = User("stranger", uid=54321, gid=54321)
    deep = make_folder(tmp_path / "a" / "b" / "c", mode=0o711)
    (tmp_path / "a" / "b").chmod(0o750)
    above = inaccessible_folder(tmp_path, stranger)
    assert inaccessible_folder(deep, stranger) == (above or tmp_path / "a" / "b")
    assert inaccessible_folder(deep, User("us", uid=os.getuid(), gid=os.getgid())) is None or above is not None


def test_data_folder_that_cannot_be_made_is_an_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MisconfiguredError, match="DCSYNC_DATA_DIR"):
        make_data_dir(tmp_path / "file" / "data")


def test_default_data_dir_follows_the_environment(tmp_path: Path) -> None:
    assert default_data_dir({"DCSYNC_DATA_DIR": str(tmp_path)}) == tmp_path
    fallback = default_data_dir({"XDG_DATA_HOME": str(tmp_path)})
    assert fallback == (Path("/var/lib/dcsync") if os.geteuid() == 0 else tmp_path / "dcsync")


AS_ANOTHER_USER = """
    import asyncio, os, sys, types
    if sys.version_info < (3, 11, 3):  # a package that redis wants there, and that our virtual environment lacks
        sys.modules["async_timeout"] = types.SimpleNamespace(timeout=asyncio.timeout)
    from pathlib import Path
    from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
    import psycopg2, redis
    data = Path(sys.argv[1]) / "own"
    for _ in range(2):
        with EmbeddedPostgres(data, fast=True) as postgres, EmbeddedRedis(data, fast=True) as valkey:
            psycopg2.connect(postgres.url).close()
            redis.Redis.from_url(valkey.url).ping()
    print("served as uid", os.getuid(), "folder mode", oct(data.stat().st_mode & 0o777))
"""


@as_root
def test_servers_start_as_a_user_who_is_not_root(own_data_dir: Path, tmp_path: Path) -> None:
    """By the system's Python, for root's own may lie where nobody else reaches it."""
    python = Path("/usr/bin/python3")
    modules = Path(psycopg2.__file__).parents[1]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    entry = pwd.getpwnam("daemon")  # initdb wants one that has a name
    user = User(entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
    if not python.exists() or python.resolve().name != version:
        pytest.skip(f"/usr/bin/python3 is not {version}")
    if inaccessible_folder(modules, user) or inaccessible_folder(REPOSITORY, user):
        pytest.skip("the checkout lies where other users do not reach it")
    os.chown(own_data_dir, user.uid, user.gid)
    done = subprocess.run(
        [python, "-c", textwrap.dedent(AS_ANOTHER_USER), own_data_dir],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{REPOSITORY}:{modules}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=own_data_dir,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"served as uid {user.uid} folder mode 0o700"


# --- what other commands find --------------------------------------------------------------------------------------

URLS = {"DCSYNC_DATABASE_URL": "postgresql://dcsync:secret@127.0.0.1:1/dcsync", "DCSYNC_REDIS_URL": "redis://:s@h/0"}


def test_endpoints_are_found_while_up_runs_and_only_then(tmp_path: Path) -> None:
    environ = {"DCSYNC_DATA_DIR": str(tmp_path)}
    lock = up_lock(tmp_path)
    lock.take()
    assert find_endpoints(environ) == {}
    write_endpoints(tmp_path, URLS)
    assert stat.S_IMODE((tmp_path / "endpoints.json").stat().st_mode) == 0o600
    assert find_endpoints(environ) == URLS
    lock.give_back()  # as when it is killed: the file stays
    assert find_endpoints(environ) == {}
    remove_endpoints(tmp_path)
    assert find_endpoints(environ) == {}


@pytest.mark.parametrize("given", ["DCSYNC_REDIS_URL", "DCSYNC_REDIS_URL_FILE"])
def test_endpoint_that_is_set_is_not_replaced(tmp_path: Path, given: str) -> None:
    lock = up_lock(tmp_path)
    lock.take()
    write_endpoints(tmp_path, URLS)
    environ = {"DCSYNC_DATA_DIR": str(tmp_path), given: "mine"}
    assert find_endpoints(environ) == {"DCSYNC_DATABASE_URL": URLS["DCSYNC_DATABASE_URL"]}
    lock.give_back()


def test_looking_for_endpoints_does_not_keep_up_from_starting(tmp_path: Path) -> None:
    lock = up_lock(tmp_path)
    for _ in range(20):
        assert not lock.is_taken()
        lock.take()
        assert lock.is_taken()
        lock.give_back()


def test_ports_offered_are_free() -> None:
    assert len({free_port() for _ in range(5)}) > 1
