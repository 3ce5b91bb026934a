"""PostgreSQL and Valkey (or Redis) as child processes, for one machine and for the tests.

Each server keeps its data, password and port in the data folder, listens on 127.0.0.1 only, requires the password, and
stops when this process ends. `binaries` finds the programs; `up` decides which URLs dcsync uses.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

import psutil
import psycopg2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dcsync.adapters.broker import acl
from dcsync.adapters.postgres import privileges
from dcsync.local.binaries import Program, accessible_program, find_postgres, find_redis, major_version
from dcsync.local.folder import FolderLock, User, make_data_dir, make_folder, server_user, write_private
from dcsync.local.leash import leashed
from dcsync.model.errors import LocalProcessFailed, MisconfiguredError

HOST = "127.0.0.1"
START_SECONDS = 60.0
"""Time limit for a start. It normally takes 0.1 s, but longer for recovery on a busy machine."""
ORPHAN_SECONDS = 10.0
"""How long an orphaned server may take to stop after its signal."""
MAX_LOG_BYTES = 10 * 1024 * 1024
TRIES_ON_ITS_PORT = 3
OTHER_PORTS = 3
BETWEEN_TRIES_SECONDS = 0.2


@dataclass(frozen=True)
class SavedState:
    """What a server keeps across restarts, in a file that only its owner may read."""

    password: str
    port: int

    def __repr__(self) -> str:
        return f"SavedState(port={self.port})"


class Server(ABC):
    """Starts, stops and watches one server process; subclasses define the server.

    `fast` disables protection against power failures, for tests. Not thread-safe; start it from the main thread (see
    `leash`).
    """

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]
    """The signals sent on `stop`, with the seconds to wait after each; SIGKILL follows."""

    def __init__(self, data_dir: Path, *, program: Program | None = None, fast: bool = False) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.fast = fast
        self._program = program
        self._user: User | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._saved_state: SavedState | None = None
        self._lock = FolderLock(self.data_dir / f"{self.name}.lock", what=self.name)

    # --- the interface ---

    @property
    @abstractmethod
    def url(self) -> str:
        """The administrator's URL with the password; available after `start`."""

    @property
    @abstractmethod
    def app_url(self) -> str:
        """The URL of workers and commands, whose user may do what they need and no more."""

    @property
    def port(self) -> int:
        return self._kept.port

    @property
    def pid(self) -> int | None:
        """The process id; None when the server does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log_file(self) -> Path:
        return self.data_dir / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Starts the server and waits until it answers. A restart keeps the port, so that clients can reconnect.

        Raises RefusedByGuard when another process uses the folder, MisconfiguredError when the folder or the programs
        cannot be used, LocalProcessFailed when the server does not start.
        """
        if self.pid is not None:
            return
        if self._lock.held:
            self._bring_up(other_ports=0)
            return
        make_data_dir(self.data_dir)
        self._lock.take()
        try:
            self._bring_up(other_ports=OTHER_PORTS)
        except BaseException:
            self._lock.give_back()
            raise

    @property
    def exit_code(self) -> int | None:
        """The exit code after the server ended by itself or by a signal; None while it runs, and after `stop`."""
        return self._process.poll() if self._process else None

    def ask_to_stop(self) -> None:
        """Sends the first stop signal without waiting."""
        if self.pid is not None and self._process is not None:
            self._process.send_signal(self.stop_signals[0][0])

    def stop(self) -> None:
        """Stops the server, by SIGKILL if it does not end in time; a second call does nothing."""
        if self._process is not None:
            end_process(self._process, self.stop_signals)
            self._process = None
        self._lock.give_back()

    def kill(self) -> None:
        """Kills the server, like a crash. `start` restarts it on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.data_dir)!r}, pid={self.pid})"

    # --- defined by subclasses ---

    @abstractmethod
    def _find(self) -> Program:
        """Returns the installed server; raises MisconfiguredError when there is none."""

    @abstractmethod
    def _command(self, program: Program, kept: SavedState) -> list[str]:
        """Returns the command that runs the server in the foreground."""

    @abstractmethod
    def _make(self, program: Program, kept: SavedState) -> None:
        """Creates the data folder if it does not exist."""

    @abstractmethod
    def _answers(self, kept: SavedState) -> bool:
        """Returns whether the server answers on this port and accepts the password."""

    @property
    @abstractmethod
    def _pid_file(self) -> Path:
        """The file the server writes while it runs."""

    # --- starting ---

    @property
    def folder(self) -> Path:
        """The server's own data, owned by the user it runs as."""
        return self.data_dir / self.name

    @property
    def _kept(self) -> SavedState:
        if self._saved_state is None:
            raise LocalProcessFailed(f"{self.name} has not been started")
        return self._saved_state

    def _bring_up(self, *, other_ports: int) -> None:
        """Tries the previous port three times (children of the last server may still be running), then other ports."""
        self._user = server_user()
        program = accessible_program(self._program or self._find(), user=self._user, copies=self.data_dir / "bin")
        kept = self._saved_state = self._read_saved_state()
        make_folder(self.log_file.parent, mode=0o700)
        self._make(program, kept)
        end_orphan(self._pid_file, folder=self.folder, death_signal=self.death_signal)
        for attempt in range(TRIES_ON_ITS_PORT + other_ports):
            if attempt >= TRIES_ON_ITS_PORT:
                kept = self._saved_state = SavedState(password=kept.password, port=free_port())
            if is_free(kept.port) and self._start_on(program, kept):
                self._write_saved_state(kept)
                return
            time.sleep(BETWEEN_TRIES_SECONDS)
        raise LocalProcessFailed(f"{self.name} did not start; {self.log_file} ends with: {last_lines(self.log_file)}")

    def _start_on(self, program: Program, kept: SavedState) -> bool:
        """Returns False when the server ended, for example because the port is in use."""
        command = leashed(
            self._command(program, kept),
            death_signal=self.death_signal,
            uid=self._user.uid if self._user else None,
            gid=self._user.gid if self._user else None,
        )
        with open_log(self.log_file) as log:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=plain_environment(),
                start_new_session=True,
            )
        try:
            return self._wait_until_answering(process, kept)
        except BaseException:
            end_process(process, self.stop_signals)
            raise

    def _wait_until_answering(self, process: subprocess.Popen[bytes], kept: SavedState) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            if self._answers(kept):
                return True
            time.sleep(0.02)
        raise LocalProcessFailed(f"{self.name} did not answer in {START_SECONDS:.0f} s; see {self.log_file}")

    @property
    def _saved_state_file(self) -> Path:
        return self.data_dir / f"{self.name}.json"

    def _read_saved_state(self) -> SavedState:
        if self._saved_state is not None:
            return self._saved_state
        try:
            stored = json.loads(self._saved_state_file.read_text(encoding="utf-8"))
            return SavedState(password=stored["password"], port=stored["port"])
        except FileNotFoundError:
            fresh = SavedState(password=secrets.token_urlsafe(24), port=free_port())
            self._write_saved_state(fresh)
            return fresh
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise MisconfiguredError(
                f"{self._saved_state_file} cannot be read ({type(exc).__name__}); it contains the password of "
                f"{self.folder}: restore both, or remove both to start with no data"
            ) from None

    def _write_saved_state(self, kept: SavedState) -> None:
        write_private(self._saved_state_file, json.dumps({"password": kept.password, "port": kept.port}))


class EmbeddedPostgres(Server):
    """PostgreSQL with one superuser and one database, both named dcsync, and the roles of `privileges`."""

    name = "postgresql"
    death_signal = signal.SIGINT
    stop_signals = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0))  # fast, then immediate shutdown

    ACCOUNT = "dcsync"
    MAX_CONNECTIONS = 300

    @property
    def url(self) -> str:
        return self.url_of(self.ACCOUNT)

    @property
    def app_url(self) -> str:
        return self.url_of(self.ACCOUNT, role=privileges.APP)

    @property
    def owner_url(self) -> str:
        """The URL of the role that owns the schema, for upgrades."""
        return self.url_of(self.ACCOUNT, role=privileges.OWNER)

    def url_of(self, database: str, *, role: str | None = None) -> str:
        """Returns the URL of another database of this server; of the superuser unless a role is named."""
        password = self._kept.password if role is None else _derived(self._kept.password, role)
        return f"postgresql://{role or self.ACCOUNT}:{password}@{HOST}:{self.port}/{database}"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "postmaster.pid"

    def _find(self) -> Program:
        return find_postgres()

    def _make(self, program: Program, kept: SavedState) -> None:
        """Runs initdb in a temporary folder, which is renamed when it is complete."""
        if self.folder.exists():
            self._check_version(program)
            return
        fresh = self.folder.with_name(f"{self.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        make_folder(fresh, mode=0o700, owner=self._user)
        password_file = fresh.with_name(f"{self.name}.password")
        try:
            write_private(password_file, kept.password, owner=self._user)
            self._initdb(program, folder=fresh, password_file=password_file)
        finally:
            password_file.unlink(missing_ok=True)
        fresh.rename(self.folder)

    def _initdb(self, program: Program, *, folder: Path, password_file: Path) -> None:
        options = ["--encoding=UTF8", "--no-locale", "--auth=scram-sha-256", "--no-instructions"]
        options += ["--no-sync"] if self.fast else []
        command = leashed(
            [
                str(program.executable("initdb")),
                f"--pgdata={folder}",
                f"--username={self.ACCOUNT}",
                f"--pwfile={password_file}",
                *options,
            ],
            death_signal=signal.SIGTERM,
            uid=self._user.uid if self._user else None,
            gid=self._user.gid if self._user else None,
        )
        done = subprocess.run(
            command, check=False, cwd=folder, env=plain_environment(), capture_output=True, text=True, timeout=300
        )
        if done.returncode != 0:
            raise LocalProcessFailed(f"initdb failed in {folder}: {done.stderr.strip() or done.stdout.strip()}")

    def _check_version(self, program: Program) -> None:
        made_by = (self.folder / "PG_VERSION").read_text(encoding="utf-8").strip()
        if made_by != major_version(program):
            raise MisconfiguredError(
                f"{self.folder} was made by PostgreSQL {made_by}, and {program.folder} is {program.version}: "
                f"install PostgreSQL {made_by}, or set DCSYNC_DATA_DIR to a new folder"
            )

    def _command(self, program: Program, kept: SavedState) -> list[str]:
        settings: dict[str, object] = {
            "listen_addresses": HOST,
            "port": kept.port,
            "unix_socket_directories": "",
            "max_connections": self.MAX_CONNECTIONS,
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if self.fast:
            settings |= {"fsync": "off", "full_page_writes": "off"}  # data still survives a killed process
        pairs = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(program.executable("postgres")), "-D", str(self.folder), *pairs]

    def _answers(self, kept: SavedState) -> bool:
        try:
            connection = psycopg2.connect(
                host=HOST,
                port=kept.port,
                user=self.ACCOUNT,
                password=kept.password,
                dbname="postgres",
                connect_timeout=2,
            )
        except psycopg2.OperationalError:
            return False
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.ACCOUNT,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {self.ACCOUNT}")
        finally:
            connection.close()
        self._make_roles()
        return True

    def _make_roles(self) -> None:
        names = {"owner": privileges.OWNER, "app": privileges.APP, "reader": privileges.READER}
        passwords = {f"{name}_password": _derived(self._kept.password, role) for name, role in names.items()}
        with contextlib.closing(psycopg2.connect(self.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(privileges.role_statements(passwords, connection))


class EmbeddedRedis(Server):
    """Valkey or Redis with an append-only file: acknowledged writes survive the process."""

    name = "valkey"
    death_signal = signal.SIGTERM
    stop_signals = ((signal.SIGTERM, 15.0),)

    @property
    def url(self) -> str:
        return f"redis://:{self._kept.password}@{HOST}:{self.port}/0"

    @property
    def app_url(self) -> str:
        return f"redis://{acl.USER}:{_derived(self._kept.password, acl.USER)}@{HOST}:{self.port}/0"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "valkey.pid"

    @property
    def _config_file(self) -> Path:
        return self.folder / "valkey.conf"

    def _find(self) -> Program:
        return find_redis()

    def _make(self, program: Program, kept: SavedState) -> None:
        make_folder(self.folder, mode=0o700, owner=self._user)

    def _command(self, program: Program, kept: SavedState) -> list[str]:
        """Returns the command; the password is passed in a file, because all users can read command lines."""
        settings = {
            "bind": HOST,
            "port": kept.port,
            "requirepass": kept.password,
            "dir": f'"{self.folder}"',
            "pidfile": f'"{self._pid_file}"',
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "no" if self.fast else "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "tcp-backlog": 128,
        }
        settings["user"] = f"{acl.USER} on >{_derived(kept.password, acl.USER)} {acl.RULES}"
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_private(self._config_file, text, owner=self._user)
        return [str(program.executable(f"{program.name}-server")), str(self._config_file)]

    def _answers(self, kept: SavedState) -> bool:
        client = redis.Redis(
            host=HOST,
            port=kept.port,
            password=kept.password,
            socket_timeout=5,
            socket_connect_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def _derived(password: str, purpose: str) -> str:
    """Returns the password of a lesser user; it reveals nothing of the administrator's."""
    return hmac.digest(password.encode(), purpose.encode(), "sha256").hex()[:48]


def free_port() -> int:
    """Returns a port that is free now; binding it may still fail if another process is faster."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def plain_environment() -> dict[str, str]:
    """Returns the environment of a server, without secrets and locale."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def open_log(path: Path) -> BinaryIO:
    """Opens a log for appending; a large one is renamed first, and one old log is kept."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab")


def last_lines(path: Path, count: int = 5) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return " | ".join(lines[-count:]) or "(empty)"


def end_process(process: subprocess.Popen[bytes], signals: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Sends each signal and waits for its seconds, then SIGKILL; returns True when the process ended before that."""
    for number, seconds in signals:
        process.send_signal(number)
        try:
            process.wait(timeout=seconds)
            return True
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()
    return False


def end_orphan(pid_file: Path, *, folder: Path, death_signal: signal.Signals) -> None:
    """Ends a server that still uses `folder` although its parent was killed.

    Callers hold the folder's lock, so a server there has no parent. A pid file that is damaged, or whose number belongs
    to another program, would prevent PostgreSQL from starting and is removed. The file of an ended process is kept:
    PostgreSQL uses it to find out whether children of that process still use the data.
    """
    try:
        process = psutil.Process(int(pid_file.read_text(encoding="utf-8").split()[0]))
        if Path(process.cwd()) == folder:
            _end_by_psutil(process, death_signal)
            return
    except (FileNotFoundError, psutil.NoSuchProcess):
        return
    except (ValueError, IndexError, psutil.AccessDenied):
        pass
    pid_file.unlink(missing_ok=True)


def _end_by_psutil(process: psutil.Process, death_signal: signal.Signals) -> None:
    for number in (death_signal, signal.SIGKILL):
        try:
            process.send_signal(number)
            process.wait(timeout=ORPHAN_SECONDS)
        except psutil.NoSuchProcess:
            return
        except psutil.TimeoutExpired:
            continue
        return
