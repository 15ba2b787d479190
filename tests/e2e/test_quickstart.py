"""The quickstart as it stands, on the installation that `make up` made, with nothing but the wheel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import sdk_wheel
from e2e.stack import ROOT, Stack
from page_examples import examples, same

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PAGE = ROOT / "docs" / "sdk" / "quickstart.md"


def test_quickstart_runs_with_nothing_but_the_package(stack: Stack, tmp_path: Path) -> None:
    python = sdk_wheel.installed(sdk_wheel.built(tmp_path), tmp_path)
    ours = ("PYTHON", "REMOTEGPU_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ = clean | {"XDG_CONFIG_HOME": str(tmp_path / "config")}

    def run(*words: str, given: str = "") -> str:
        done = subprocess.run(
            [str(python.with_name(words[0])), *words[1:]],
            input=given, capture_output=True, text=True, check=False, cwd=tmp_path, env=environ, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        assert done.stderr == "", "a pipe sees no progress bars"
        return done.stdout

    who = ("-u", "admin", "--password-stdin")
    assert "Signed in" in run("remotegpu", "login", stack.server_url, *who, given=stack.admin_password)
    found = list(examples(PAGE))
    (tmp_path / "quickstart.py").write_text("".join(example.code for example in found))
    printed = run("python", "quickstart.py")
    assert same("".join(example.printed for example in found), printed), printed
    assert run("remotegpu", "task", "list", "--name", "first").count("succeeded") == 1
