"""The wheel, installed with nothing but its base dependencies, works and brings little with it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

CLOSURE = {
    "annotated-types",
    "anyio",
    "certifi",
    "h11",
    "httpcore",
    "httpx",
    "idna",
    "pydantic",
    "pydantic-core",
    "remotegpu",
    "sniffio",
    "typing-extensions",
    "typing-inspection",
}
"""httpx, pydantic and what they need. More needs a decision record."""


def run(python: Path, *words: str) -> str:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "REMOTEGPU_"))
    }
    done = subprocess.run(
        [str(python), *words], capture_output=True, text=True, check=False, cwd="/", env=environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_installed_but_httpx_pydantic_and_what_they_need(installed: Path) -> None:
    code = (
        "import json; from importlib.metadata import distributions;"
        "print(json.dumps([d.metadata['Name'].lower().replace('_', '-') for d in distributions()]))"
    )
    found = set(json.loads(run(installed, "-c", code)))
    assert {"remotegpu", "httpx", "pydantic"} <= found
    assert found <= CLOSURE


def test_clients_and_every_resource_can_be_used(installed: Path) -> None:
    code = """
import remotegpu
from remotegpu.types import agent, environments, events, hosts, identity, images, quotas
for kind in (remotegpu.Client, remotegpu.AsyncClient):
    client = kind("http://127.0.0.1:1", "rgu_x_y")
    names = [name for name, value in vars(kind).items() if type(value).__name__ == "cached_property"]
    assert all(getattr(client, name) for name in names), names
print(len(names))
"""
    assert int(run(installed, "-c", code)) >= 15


def test_command_line_works(installed: Path) -> None:
    assert "env" in run(installed, "-m", "remotegpu", "--help")
    script = installed.with_name("remotegpu")
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("remotegpu ")


def test_package_is_typed(installed: Path) -> None:
    folder = run(installed, "-c", "import remotegpu, pathlib; print(pathlib.Path(remotegpu.__file__).parent)")
    assert (Path(folder.strip()) / "py.typed").exists()
