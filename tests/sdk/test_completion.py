"""The scripts of ``remotegpu completion`` in the shells they are for."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from remotegpu.cli import main
from remotegpu.cli.completion import SHELLS, commands, script
from remotegpu.cli.parser import make_parser

CASES = [
    (["env", "sto"], "stop"),
    (["--url", "http://x", "env", "sto"], "stop"),
    (["image", "add", "base", "ref", "--runtime", "pro"], "process"),
    (["env", "create", "--no-q"], "--no-queue"),
    (["quota", "set", "cust"], "customer"),
    (["env", "list", "--js"], "--json"),
]

BASH = """
source {script}
COMP_WORDS=(remotegpu {words}) COMP_CWORD={last}
_remotegpu
echo "${{COMPREPLY[*]}}"
"""
# Without zsh's own completion system: what our function hands to it, filtered as it would.
ZSH = """
compdef() {{ : }}
_describe() {{ for one in "${{(@P)2}}"; do [[ $one == {prefix}* ]] && print -r -- "${{one%%:*}}"; done }}
compadd() {{ shift; for one in "$@"; do [[ $one == {prefix}* ]] && print -r -- "$one"; done }}
source {script}
words=(remotegpu {words}) CURRENT={current}
_remotegpu
"""
FISH = 'source {script}; complete -C "remotegpu {words}" | string replace -r "\\t.*" ""'
PROGRAMS = {"bash": (["bash", "-c"], BASH), "zsh": (["zsh", "-fc"], ZSH), "fish": (["fish", "-c"], FISH)}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("words", "wanted"), CASES)
def test_shell_completes_the_word(shell: str, words: list[str], wanted: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} on this machine")
    written = tmp_path / f"completion.{shell}"
    written.write_text(script(shell, make_parser()))
    program, template = PROGRAMS[shell]
    code = template.format(
        script=written, words=" ".join(words), last=len(words), current=len(words) + 1, prefix=words[-1]
    )
    done = subprocess.run([*program, code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == [wanted], done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_script_knows_every_command_and_every_option(shell: str) -> None:
    text = script(shell, make_parser())
    for command in commands(make_parser()):
        assert command.path in text
        for option in command.options:
            assert (option.removeprefix("--") if shell == "fish" else option) in text


@pytest.mark.parametrize("shell", SHELLS)
def test_text_of_a_help_cannot_end_its_quotes(shell: str) -> None:
    parser = argparse.ArgumentParser(prog="remotegpu")
    below = parser.add_subparsers()
    below.add_parser("run", help="it's '; rm -rf /' `here` $(there): a thing")
    quoted = script(shell, parser)
    assert "it's" not in quoted
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=quoted, text=True, check=False).returncode == 0


def test_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    printed = capsys.readouterr().out
    assert printed == script("bash", make_parser())
    assert main(["completion", "bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "bash", "script": printed}
