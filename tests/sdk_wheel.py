"""The SDK as somebody else gets it: the wheel, in an environment with nothing but its base dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def uv(*words: str | Path) -> None:
    # Hard links would tie the environment to uv's cache; where they cannot be made, uv warns and copies.
    done = subprocess.run(
        [sys.executable, "-m", "uv", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "UV_LINK_MODE": "copy"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def built(folder: Path) -> Path:
    """The wheel of this checkout."""
    # hatchling is a dev dependency: built here, without another environment to fetch.
    python = ("--no-build-isolation", "--python", sys.executable)
    uv("build", "--quiet", "--wheel", *python, "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(wheel: Path, folder: Path) -> Path:
    """A Python with the wheel and its base dependencies, in the versions that are locked."""
    locked = (ROOT / "requirements" / "dev.txt").read_text().splitlines()
    pins = folder / "constraints.txt"
    pins.write_text("".join(f"{line.split()[0]}\n" for line in locked if "==" in line and line[:1].isalnum()))
    uv("venv", "--quiet", "--python", sys.executable, folder / "venv")
    python = folder / "venv" / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, "--constraint", pins, wheel)
    return python
