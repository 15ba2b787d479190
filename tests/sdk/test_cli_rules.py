"""Rules that every command keeps: JSON for programs, output in one place, exit codes as documented."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import sys
from pathlib import Path

import pytest

import remotegpu
from remotegpu import errors
from remotegpu.cli import failures, main
from remotegpu.cli.completion import commands
from remotegpu.cli.parser import make_parser

from .conftest import TOKEN
from .samples import environment, event, page
from .scripted_server import ScriptedServer, answers, streams

ROOT = Path(__file__).parents[2]
CLI = ROOT / "sdk" / "remotegpu" / "cli"
FOUND = {one.path: one for one in commands(make_parser()) if one.words}
LEAVES = [path for path in FOUND if not any(other.startswith(f"{path} ") for other in FOUND)]


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_takes_json_and_a_server_after_it(path: str) -> None:
    assert {"--json", "--url", "--help"} <= FOUND[path].options.keys()


def test_standard_output_is_written_in_one_module() -> None:
    """So that no command prints something else than JSON where JSON was asked for."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(CLI.glob("*.py"))
        if path.name != "output.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _writes_to_stdout(node)
    ]
    assert found == []


def _writes_to_stdout(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name == "print":
        return "sys.stderr" not in {ast.unparse(one.value) for one in call.keywords if one.arg == "file"}
    return name == "sys.stdout.write"


def documented() -> dict[int, str]:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    return {int(code): meaning for code, meaning in rows}


def test_exit_codes_are_the_documented_ones() -> None:
    codes = {value for name, value in vars(failures).items() if name.isupper() and isinstance(value, int)}
    assert documented().keys() == codes | {0}


def test_every_error_ends_with_a_documented_code() -> None:
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.RemoteGPUError):
            assert failures.exit_code(kind("no")) in documented(), name


def test_first_words_of_the_help_agree_with_the_documented_codes() -> None:
    epilog = make_parser().epilog or ""
    assert {int(code) for code in re.findall(r"\d+", epilog)} <= documented().keys()


@pytest.fixture
def signed_in(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    monkeypatch.setenv("REMOTEGPU_URL", server.url)
    monkeypatch.setenv("REMOTEGPU_TOKEN", TOKEN)
    return server


def test_watch_prints_a_json_object_for_each_change(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = environment(status="deleted")
    signed_in.play(answers(page(environment())), streams(b"id: 7.0\n\n"), answers(gone))
    assert main(["env", "watch", "work", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["deleted"]


def test_watch_of_events_ends_with_ctrl_c_and_says_so(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.dumps(event("7.1", message="It runs."))
    signed_in.play(streams(f"id: 7.1\ndata: {data}\n\n".encode(), cut=False))

    class Output(io.StringIO):
        def flush(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Output())
    assert main(["event", "watch"]) == failures.INTERRUPTED
    assert "It runs." in sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "interrupted" in capsys.readouterr().err


def test_events_are_listed_after_one_of_them(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    signed_in.play(answers(page(event("7.1", message="It runs."))))
    assert main(["event", "list", "--after", "0", "--subject-type", "environment"]) == 0
    assert signed_in.seen[0].path == "/v1/events?subject_type=environment&after=0"
    assert "It runs." in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_logs_are_followed_until_the_environment_stops(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    text = {"text": "epoch 1\n", "truncated": False, "live": False}
    signed_in.play(answers(page(environment())), answers(environment(status="stopped")), answers(text))
    assert main(["env", "logs", "work", "-f", *(["--json"] if as_json else [])]) == 0
    assert capsys.readouterr().out == ('{"text": "epoch 1\\n"}\n' if as_json else "epoch 1\n")


def test_answer_of_another_version_names_the_field(
    signed_in: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = environment()
    del odd["owner"]
    signed_in.play(answers(odd))
    with (
        remotegpu.Client() as client,
        pytest.raises(remotegpu.UnexpectedAnswer, match="owner: Field required"),
    ):
        client.environments.get("env1")
