"""The command line against a real server process, as an admin uses it on the first day."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from remotegpu.cli import main
from remotegpu_server.testing import LiveServer


class Shell:
    """Runs commands in this process, with their own configuration folder."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
    ) -> None:
        for name in ("REMOTEGPU_URL", "REMOTEGPU_TOKEN", "REMOTEGPU_HUB_URL", "JUPYTERHUB_PUBLIC_HUB_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: str, stdin: str = "", status: int = 0) -> str:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        found = main(words)
        written = self._capsys.readouterr()
        assert found == status, written.err
        return written.out if status == 0 else written.err


def test_first_day_of_an_admin(
    live_server: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Shell(monkeypatch, capsys, tmp_path / "config")
    assert "remotegpu login" in run("whoami", status=4)
    login = ("login", live_server.url, "--username", "admin", "--password-stdin")
    run(*login, stdin="wrong password\n", status=4)
    run(*login, stdin=f"{live_server.admin_password}\n")
    kept = tmp_path / "config" / "remotegpu" / "credentials.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "admin" in run("whoami")

    run("image", "add", "base", "registry.example.org/base:1")
    assert "registry.example.org/base:1" in run("image", "list")
    assert "already" in run("image", "add", "base", "registry.example.org/base:2", status=1)
    run("image", "add", "python", "host-python", "--runtime", "process", "--command", "python -m 'my server'")
    listed = {image["name"]: image["command"] for image in json.loads(run("image", "list", "--json"))}
    assert listed["base"] is None
    assert listed["python"] == ["python", "-m", "my server"]
    assert "One-time password" in run("user", "add", "ada")
    assert run("user", "add", "Ada!", status=1).count("username") == 1
    assert "ada" in run("user", "list")
    lines = json.loads(run("--json", "quota", "set", "user", "ada", "gpus=0", "memory_bytes=8G"))
    assert {line["resource"]: line["limit"] for line in lines if line["subject"] == "user"}["gpus"] == 0
    assert "what runs is kept" in run("user", "suspend", "ada")
    assert "active" in run("user", "resume", "ada")

    run("user", "add", "grace", "--email", "grace@example.org")
    assert "reset-password" in run("user", "reset-link", "grace")
    assert "is there" in run("workspace", "add", "Protein folding")
    assert "viewer" in run("workspace", "add-member", "Protein folding", "grace", "--role", "viewer")
    assert "admin" in run("workspace", "add-member", "Protein folding", "grace", "--role", "admin")
    assert "grace" in run("workspace", "members", "Protein folding")
    assert "grace owns" in run("workspace", "transfer", "Protein folding", "grace")
    assert "Nothing is left" in run("notifications", "read")
    run("customer", "add", "physics", "--code", "KST-7")
    assert "KST-7" in run("customer", "list")
    assert "users.create_user" in run("audit", "list", "--actor", "admin")
    assert "users.create_user" in run("audit", "export", "--format", "csv")
    assert "records are whole" in run("audit", "verify")
    assert "deleted" in run("customer", "suspend", "physics") + run("user", "rm", "ada")

    added = run("host", "add", "gpu-01", "--label", "rack=a1")
    assert f"remotegpu-agent enroll --url {live_server.url} --token-file /dev/stdin" in added
    assert "gpu-01 --again" in run("host", "add", "gpu-01", status=1)
    assert "rge_" in run("host", "add", "gpu-01", "--again")
    assert json.loads(run("host", "cordon", "gpu-01", "--json"))["succeeded"] == ["gpu-01"]
    assert "operational: cordoned" in run("host", "show", "gpu-01")
    assert "uncordon: gpu-01" in run("host", "uncordon", "gpu-01")
    assert run("gpu", "list") == ""
    assert "gpus" in run("quota")
    assert run("volume", "list", "--host", "gpu-01") == ""
    assert "no such volume" in run("volume", "delete", "vol-none", status=1)
    refused = run("env", "create", "work", "--image", "base", "--gpus", "1", "--no-queue", status=1)
    assert refused.startswith("remotegpu: ")

    waited = run("env", "create", "late", "--image", "base", "--timeout", "0.2", status=1)
    assert "late goes on waiting" in waited
    run("env", "rm", "late")
    run("env", "create", "work", "--image", "base", "--no-wait")
    assert json.loads(run("env", "list", "--json"))[0]["status"] == "pending"
    assert "has no address" in run("env", "open", "work", status=1)
    run("env", "stop", "work")
    run("env", "rm", "work")
    assert run("env", "list") == ""

    run("logout")
    assert not kept.exists()
    live_server.stop()
    assert "Cannot reach" in run("--url", live_server.url, "gpu", "list", status=3)


def test_a_host_is_lent_extended_ended_and_reclaimed(
    live_server: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Shell(monkeypatch, capsys, tmp_path / "config")
    login = ("login", live_server.url, "--username", "admin", "--password-stdin")
    run(*login, stdin=f"{live_server.admin_password}\n")
    run("host", "add", "lent-01")
    lend = ("dedication", "create", "lent-01", "--customer", "default", "--until", "2999-01-01T00:00+00:00")
    lent = json.loads(run("--json", *lend))
    run(*lend, status=1)
    assert lent["id"] in run("dedication", "list", "--host", "lent-01")
    later = run("--json", "dedication", "extend", lent["id"], "--until", "2999-02-01T00:00+00:00")
    assert json.loads(later)["ends_at"].startswith("2999-02-01")
    assert "status: grace" in run("dedication", "end", lent["id"], "--reason", "a test")
    assert "status: cleaning" in run("dedication", "reclaim", lent["id"], "--reason", "a test", "--force")


def test_rotated_secret_of_a_host_is_installed_and_works(
    live_server: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Shell(monkeypatch, capsys, tmp_path / "config")
    login = ("login", live_server.url, "--username", "admin", "--password-stdin")
    run(*login, stdin=f"{live_server.admin_password}\n")
    token = json.loads(run("--json", "host", "add", "h1"))["secret"]
    state = tmp_path / "agent"
    _agent(
        "enroll", "--url", live_server.url, "--token-file", "/dev/stdin", "--state-dir", state, stdin=token
    )
    kept = state / "credential.json"
    old = json.loads(kept.read_text())["secret"]

    rotated = json.loads(run("--json", "host", "rotate-credential", "h1", "--overlap", "60"))["secret"]
    _agent("install-credential", "--state-dir", state, stdin="not a secret", status=2)
    assert json.loads(kept.read_text())["secret"] == old
    _agent("install-credential", "--state-dir", state, stdin=f"{rotated}\n")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["secret"] == rotated
    path = f"{live_server.url}/v1/agent/workloads?epoch=1&wait_s=0"
    known = {
        secret: httpx.get(path, headers={"Authorization": f"Bearer {secret}"}).status_code
        for secret in (old, rotated)
    }
    run("host", "revoke-credential", "h1")
    gone = httpx.get(path, headers={"Authorization": f"Bearer {rotated}"}).status_code
    assert (401 not in known.values(), gone) == (True, 401)
    assert "no such GPU" in run("gpu", "check", "gpu-none", status=1)
    assert "no such GPU" in run("gpu", "restore", "gpu-none", "--reason", "a test", status=1)


def _agent(*words: object, stdin: str, status: int = 0) -> None:
    command = [sys.executable, "-m", "remotegpu_agent", *map(str, words)]
    done = subprocess.run(command, input=stdin, text=True, capture_output=True)
    assert done.returncode == status, done.stderr


def test_schedules_are_made_paused_resumed_and_deleted(
    live_server: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Shell(monkeypatch, capsys, tmp_path / "config")
    login = ("login", live_server.url, "--username", "admin", "--password-stdin")
    run(*login, stdin=f"{live_server.admin_password}\n")
    run("image", "add", "nightly", "registry.example.org/nightly:1")
    what = ("--image", "nightly", "--gpus", "1", "--", "python", "evaluate.py")
    create = ("schedule", "create", "--name", "evaluate", "--time-zone", "Europe/Berlin")
    assert "five fields" in run(*create, "--cron", "daily and often", *what, status=1)
    assert "script" in run(*create, "--cron", "0 2 * * *", "--image", "nightly", status=2)
    made = json.loads(run("--json", *create, "--cron", "0 2 * * *", *what))
    assert (made["task"]["command"], made["task"]["gpus"]) == (["python", "evaluate.py"], 1)
    assert "evaluate" in run("schedule", "list")
    assert "is paused" in run("schedule", "pause", made["id"])
    assert "comes next at" in run("schedule", "resume", made["id"])
    assert "comes next at" in run("schedule", "show", made["id"])
    assert "deleted" in run("schedule", "delete", made["id"])
    assert "no such schedule" in run("schedule", "show", made["id"], status=1)
