"""The command line, as people and programs meet it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remotegpu import _config
from remotegpu.cli import main

from .samples import AT, IMAGE, TOKEN, USER, environment, page
from .scripted_server import ScriptedServer, answers, hangs, refuses, says

SESSION = {"token": TOKEN, "secret": "rgu_t1_secret", "user": USER}


@pytest.fixture
def signed_in(server: ScriptedServer) -> ScriptedServer:
    _config.save(_config.Target(server.url, "rgu_t1_secret"))
    return server


def command(*words: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "remotegpu", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def test_login_keeps_the_token_and_logout_revokes_and_forgets_it(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("pass word \n"))
    server.play(answers(SESSION, status=201), says(204, ""))
    assert main(["login", server.url + "/", "--username", "ada", "--password-stdin"]) == 0
    assert json.loads(server.seen[0].body) == {
        "username": "ada",
        "password": "pass word ",
        "expires_in_s": 43200,
    }
    assert _config.load() == _config.Target(server.url, "rgu_t1_secret")

    assert main(["logout"]) == 0
    assert server.seen[1].path == "/v1/auth/logout"
    assert server.seen[1].headers["authorization"] == "Bearer rgu_t1_secret"
    assert _config.load() is None
    written = capsys.readouterr()
    assert "secret" not in written.out + written.err
    assert "pass word" not in written.out + written.err


def test_logout_forgets_the_token_even_when_the_server_is_gone(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    signed_in.play(says(502, ""))
    assert main(["logout"]) == 3
    assert _config.load() is None


def test_login_without_a_terminal_asks_for_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["login", "https://gpu.example.org", "--username", "ada"]) == 2
    assert "--password-stdin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (refuses(409, "quota_exceeded", hint="Stop one."), 1),
        (refuses(401, "token_invalid"), 4),
        (says(200, "<html>"), 3),
    ],
)
def test_exit_code_says_what_kind_of_failure_it_was(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str], step: object, code: int
) -> None:
    signed_in.play(step)  # type: ignore[arg-type]
    assert main(["whoami"]) == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("remotegpu: ")


def test_failure_shows_hint_and_the_fields_that_are_wrong(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [{"loc": ["body", "gpus"], "msg": "too many"}]
    signed_in.play(refuses(422, "invalid", hint="Ask for less.", data={"errors": errors}))
    assert main(["env", "create", "work", "--image", "base", "--gpus", "99"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "remotegpu: This is invalid.",
        "  body.gpus: too many",
        "hint: Ask for less.",
    ]


def test_failure_is_json_for_programs(signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    signed_in.play(refuses(503, "no_capacity", data={"free": 0}))
    assert main(["env", "create", "work", "--image", "base", "--no-queue", "--json"]) == 1
    error = json.loads(capsys.readouterr().err)
    assert (error["error"], error["data"], error["request_id"]) == ("no_capacity", {"free": 0}, "req-1")


def test_not_signed_in_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "list"]) == 4
    assert "remotegpu login" in capsys.readouterr().err
    for wrong in (["env", "frobnicate"], ["env", "create", "x", "--image", "b", "--memory", "many"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2


def test_create_sends_sizes_waits_and_says_where_it_runs(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    signed_in.play(answers(environment(status="pending"), status=201), answers(environment()))
    words = "env create work --image base --gpus 1 --gpu-model A100-80GB --cpus 2 --memory 1.5GiB --env A=b=c"
    assert main(words.split()) == 0
    assert json.loads(signed_in.seen[0].body) == {
        "name": "work",
        "image": "base",
        "gpus": 1,
        "gpu_models": ["A100-80GB"],
        "cpus": 2.0,
        "memory_bytes": 3 * 2**29,
        "env": {"A": "b=c"},
        "queue": True,
    }
    assert capsys.readouterr().out == "work is running on one: Ready.\n"


def test_environment_is_found_by_name_then_by_id(signed_in: ScriptedServer) -> None:
    signed_in.play(
        answers(page(environment(id="e7"))),
        answers(environment(id="e7", status="stopping")),
        answers(page()),
        answers(environment(id="e7")),
        answers(environment(id="e7", status="stopping")),
    )
    assert main(["env", "stop", "work", "--no-wait"]) == 0
    assert main(["env", "stop", "e7", "--no-wait"]) == 0
    assert [seen.path for seen in signed_in.seen] == [
        "/v1/environments?name=work",
        "/v1/environments/e7:stop",
        "/v1/environments?name=e7",
        "/v1/environments/e7",
        "/v1/environments/e7:stop",
    ]


def test_name_that_several_users_have_needs_an_owner(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    signed_in.play(answers(page(environment(), environment(id="env2", owner="bob"))))
    assert main(["env", "rm", "work"]) == 2
    assert "ada, bob" in capsys.readouterr().err
    assert len(signed_in.seen) == 1, "nothing was removed"


def test_tables_are_for_people_and_json_for_programs(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = {**IMAGE, "display_name": "x\x1b[2Jy"}
    signed_in.play(
        answers(page(evil, next_cursor="2")), answers(page({**IMAGE, "name": "torch"})), answers(page())
    )
    assert main(["image", "list"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()] == ["NAME", "base", "torch"]
    assert "\x1b" not in table
    assert main(["--json", "image", "list"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_host_add_prints_the_command_to_type_on_the_host(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    token = {"host_id": "h1", "secret": "rge_h1_once", "expires_at": AT}
    signed_in.play(refuses(409, "name_taken"), answers(token, status=201))
    assert main(["host", "add", "gpu7", "--again"]) == 0
    out = capsys.readouterr().out
    assert (
        f"printf %s rge_h1_once | remotegpu-agent enroll --url {signed_in.url} --token-file /dev/stdin" in out
    )


def test_quota_set_reads_limits(signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    line = {
        "subject": "user",
        "subject_id": "u1",
        "subject_name": "ada",
        "resource": "gpus",
        "limit": None,
        "used": 1.0,
        "available": None,
        "window_s": None,
        "policy": None,
        "raised_until": None,
    }
    signed_in.play(answers({"lines": [line], "over": []}))
    assert main(["quota", "set", "user", "ada", "gpus=unlimited", "memory_bytes=64G", "cpus=0"]) == 0
    assert signed_in.seen[0].path == "/v1/quotas/user/ada"
    assert json.loads(signed_in.seen[0].body) == {
        "limits": {"gpus": None, "memory_bytes": 64 * 2**30, "cpus": 0}
    }
    assert "unlimited" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sent"), [("90", 90), ("true", True), ("1.5", 1.5), ("Lab", "Lab"), ('{"a": 1}', '{"a": 1}')]
)
def test_setting_set_sends_the_type_that_was_meant(
    signed_in: ScriptedServer, text: str, sent: object
) -> None:
    setting = {
        "key": "group.name",
        "type": "string" if isinstance(sent, str) else "number",
        "value": sent,
        "default": sent,
        "minimum": None,
        "maximum": None,
        "description": "What it means.",
        "public": True,
        "changed_by": None,
        "changed_at": None,
    }
    signed_in.play(answers(setting), answers(setting))
    assert main(["setting", "set", "group.name", text]) == 0
    assert json.loads(signed_in.seen[1].body) == {"value": sent}


def test_open_prints_the_hub_url_where_it_is_known(
    signed_in: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JUPYTERHUB_PUBLIC_HUB_URL", raising=False)
    signed_in.play(*[answers(page(environment()))] * 2)
    assert main(["env", "open", "work"]) == 0
    monkeypatch.setenv("REMOTEGPU_HUB_URL", "https://hub.example.org/hub/")
    assert main(["env", "open", "work"]) == 0
    assert capsys.readouterr().out.split() == [
        "http://10.0.0.1:8888",
        "https://hub.example.org/user/ada/work/",
    ]


def test_interrupt_ends_quietly_with_130(signed_in: ScriptedServer) -> None:
    signed_in.play(hangs)
    with command("gpu", "list") as process:
        while not signed_in.seen:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_reader_that_leaves_early_is_no_error(signed_in: ScriptedServer) -> None:
    signed_in.play(answers(page(*[{**IMAGE, "description": "x" * 1000}] * 200)))
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "remotegpu", "--json", "image", "list"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


def test_installed_command_and_module_are_the_same() -> None:
    script = Path(sys.executable).with_name("remotegpu")
    outputs = {
        subprocess.run([*words, "--version"], capture_output=True, text=True, check=True).stdout
        for words in ([str(script)], [sys.executable, "-m", "remotegpu"])
    }
    assert len(outputs) == 1
