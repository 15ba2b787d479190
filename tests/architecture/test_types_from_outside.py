"""mypy and pyright, both strict, accept a program that uses the installed wheel."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import remotegpu

PROGRAM = Path(__file__).with_name("typed_program.py")
MISTAKES = """
import remotegpu

client = remotegpu.Client()
client.environments.create(name="work")
client.environments.get(1)
client.environments.get("env").nmae
[image for image in remotegpu.AsyncClient().images.list()]
"""
"""Each of the last four lines has an error that a checker must see: it reads our types, not `Any`."""


def every_method() -> str:
    """A program that touches every method of every resource of both clients."""
    lines = ["import remotegpu", "blocking = remotegpu.Client()", "waiting = remotegpu.AsyncClient()"]
    for variable, kind in (("blocking", remotegpu.Client), ("waiting", remotegpu.AsyncClient)):
        client = kind("http://127.0.0.1:1", "")
        for name in [one for one, value in vars(kind).items() if type(value).__name__ == "cached_property"]:
            methods = inspect.getmembers(type(getattr(client, name)), inspect.isfunction)
            lines += [f"print({variable}.{name}.{one})" for one, _ in methods if not one.startswith("_")]
    return "\n".join([*lines, ""])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Path:
    """A folder of somebody else, with our wheel in its environment."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "program.py").write_text(PROGRAM.read_text())
    (folder / "every_method.py").write_text(every_method())
    (folder / "mistakes.py").write_text(MISTAKES)
    config = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "pythonPlatform": "Linux"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    (folder / "python.txt").write_text(str(installed))
    return folder


def _python(project: Path) -> str:
    return (project / "python.txt").read_text()


def mypy(project: Path, *files: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", _python(project),
         "--cache-dir", str(project / ".cache"), "--no-error-summary", "--config-file", "", *files],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout.splitlines()


def pyright(project: Path, *files: str) -> list[str]:
    # basedpyright is pyright with its Node.js in the package: nothing is fetched when it runs.
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", _python(project), *files],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [f"{one['file']}:{one['range']['start']['line'] + 1}: {one['message']}" for one in found]


@pytest.mark.parametrize("check", [mypy, pyright])
def test_program_that_uses_the_package_as_documented_is_accepted(check: object, project: Path) -> None:
    assert callable(check)
    assert check(project, "program.py") == []


@pytest.mark.parametrize("check", [mypy, pyright])
def test_every_method_has_a_type_that_is_known_whole(check: object, project: Path) -> None:
    assert callable(check)
    assert check(project, "every_method.py") == []


@pytest.mark.parametrize("check", [mypy, pyright])
def test_mistakes_are_seen(check: object, project: Path) -> None:
    assert callable(check)
    found = check(project, "mistakes.py")
    assert {int(line.split(":")[1]) for line in found} == {5, 6, 7, 8}
