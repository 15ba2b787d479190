"""A real server process: first start, crash between commit and answer, shutdown with open streams."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from remotegpu_server.testing import LiveServer


def _command(database_url: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remotegpu_server", *arguments],
        env={**os.environ, "REMOTEGPU_DATABASE_URL": database_url, "REMOTEGPU_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_init_on_empty_database_prints_password_once_and_repeats_nothing(
    empty_database_url: str, tmp_path: Path
) -> None:
    first = _command(empty_database_url, tmp_path, "init")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("one-time password: ") == 1
    second = _command(empty_database_url, tmp_path, "init")
    assert (second.returncode, second.stdout) == (0, "")


def test_init_writes_secrets_to_private_files_only(empty_database_url: str, tmp_path: Path) -> None:
    password, token = tmp_path / "secrets" / "password", tmp_path / "secrets" / "hub"
    arguments = ("init", "--admin-password-file", str(password), "--hub-token-file", str(token))
    made = _command(empty_database_url, tmp_path, *arguments)
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(password.stat().st_mode) == stat.S_IMODE(token.stat().st_mode) == 0o600
    assert password.read_text().strip() not in made.stdout + made.stderr
    assert token.read_text().startswith("rgs_")

    before = (password.read_text(), token.read_text())
    assert _command(empty_database_url, tmp_path, *arguments).returncode == 0
    assert (password.read_text(), token.read_text()) == before


def test_create_token_prints_a_working_secret(live_server: LiveServer, database_url: str) -> None:
    made = _command(database_url, live_server.folder, "create-token", "--name", "ci", "--user", "admin")
    assert made.returncode == 0, made.stderr
    answer = httpx.get(f"{live_server.url}/v1/me", headers={"Authorization": f"Bearer {made.stdout.strip()}"})
    assert answer.json()["user"]["username"] == "admin"


def test_wrong_setting_is_named(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTEGPU_SUSPECT_AFTER_S", "5")
    answer = _command(database_url, tmp_path, "serve")
    assert answer.returncode == 1
    assert "REMOTEGPU_SUSPECT_AFTER_S" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_killed_between_commit_and_answer_then_same_key_gets_the_answer(live_server: LiveServer) -> None:
    headers = {**live_server.admin_headers, "Idempotency-Key": "spawn-1"}
    live_server.stop()
    live_server.start(REMOTEGPU_CRASH_AT="after_commit")
    body = {"username": "grace"}
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{live_server.url}/v1/users", json=body, headers=headers, timeout=10)
    assert live_server.wait_ended() == 137

    live_server.start()
    first = httpx.post(f"{live_server.url}/v1/users", json=body, headers=headers, timeout=10)
    again = httpx.post(f"{live_server.url}/v1/users", json=body, headers=headers, timeout=10)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    login = {"username": "grace", "password": first.json()["one_time_password"]}
    assert httpx.post(f"{live_server.url}/v1/auth/login", json=login, timeout=10).status_code == 201


def test_killed_before_commit_leaves_nothing(live_server: LiveServer) -> None:
    headers = {**live_server.admin_headers, "Idempotency-Key": "spawn-2"}
    live_server.stop()
    live_server.start(REMOTEGPU_CRASH_AT="before_commit")
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{live_server.url}/v1/users", json={"username": "grace"}, headers=headers, timeout=10)
    assert live_server.wait_ended() == 137
    live_server.start()
    assert httpx.get(f"{live_server.url}/v1/users/grace", headers=headers).status_code == 404


def test_term_ends_open_streams_and_the_server_quickly(live_server: LiveServer) -> None:
    headers = {**live_server.admin_headers, "Accept": "text/event-stream"}
    with httpx.stream("GET", f"{live_server.url}/v1/events?after=0", headers=headers, timeout=10) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("id: ")
        started = time.monotonic()
        live_server.stop()
        for _ in lines:
            pass
    assert live_server.wait_ended() in (0, -15)
    assert time.monotonic() - started < 5


def test_kill_9_and_restart_keeps_sessions(live_server: LiveServer) -> None:
    headers = live_server.admin_headers
    live_server.kill()
    live_server.start()
    assert httpx.get(f"{live_server.url}/v1/me", headers=headers).status_code == 200


def test_ten_megabytes_are_refused_and_the_server_goes_on(live_server: LiveServer) -> None:
    headers = live_server.admin_headers

    def chunks() -> object:
        for _ in range(160):
            yield b"x" * 65536

    for content in (b"x" * 10_000_000, chunks()):
        answer = httpx.post(
            f"{live_server.url}/v1/users",
            content=content,  # type: ignore[arg-type]
            headers={**headers, "Content-Type": "application/json"},
            timeout=20,
        )
        assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
    assert httpx.get(f"{live_server.url}/v1/me", headers=headers).status_code == 200


def test_secrets_are_nowhere_in_the_log(live_server: LiveServer) -> None:
    headers = live_server.admin_headers
    httpx.get(f"{live_server.url}/v1/me?token={headers['Authorization'][7:]}", headers=headers)
    canary = "canary-5f0a7be1"
    with httpx.Client(base_url=live_server.url, headers=headers, timeout=30) as admin:
        admin.post("/v1/auth/login", json={"username": "admin", "password": canary})
        admin.post("/v1/auth/login", json={"username": "admin", "password": [canary]})
        made = admin.post("/v1/users", json={"username": "ada", "password": f"{canary}-of-ada"})
        assert made.status_code == 201, made.text
        admin.post("/v1/images", json={"name": "base", "reference": "example.org/base:1"})
        acting = {"Authorization": f"Bearer {live_server.hub_token}", "X-RemoteGPU-On-Behalf-Of": "ada"}
        spec = {"name": "w", "image": "base", "secret_env": {"API_KEY": canary}}
        assert admin.post("/v1/environments", json=spec, headers=acting).status_code == 201
        admin.post("/v1/environments", json=spec | {"gpus": "many"}, headers=acting)
        admin.get("/v1/me", headers={"Authorization": f"Bearer rgu_{canary}"})
    live_server.stop()
    log = live_server.log.read_text()
    assert log
    assert canary not in log
    assert live_server.admin_password not in log
    assert headers["Authorization"][7:] not in log
    assert live_server.hub_token not in log
