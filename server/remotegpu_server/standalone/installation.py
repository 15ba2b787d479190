"""Where one installation keeps its things, and which ports it has."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remotegpu_server.standalone.failure import StepFailed

LOOPBACK = "127.0.0.1"
ADMIN = "admin"
HOST_NAME = "local"


@dataclass(frozen=True)
class Installation:
    """A data folder and a block of four ports."""

    home: Path
    port: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Installation:
        """Read ``REMOTEGPU_HOME`` and ``REMOTEGPU_PORT``."""
        written = environ.get("REMOTEGPU_PORT") or "8000"
        port = int(written) if written.isdigit() else 0
        if not 1024 <= port <= 65532:
            raise StepFailed(
                "settings",
                f"REMOTEGPU_PORT is {written!r}",
                "Give a number from 1024 to 65532; it and the next 3 are used.",
            )
        home = Path(environ.get("REMOTEGPU_HOME") or "~/.local/share/remotegpu")
        return cls(home=home.expanduser().absolute(), port=port)

    @property
    def proxy_api_port(self) -> int:
        return self.port + 1

    @property
    def hub_api_port(self) -> int:
        return self.port + 2

    @property
    def server_port(self) -> int:
        return self.port + 3

    @property
    def hub_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def server_url(self) -> str:
        """The server as this machine reaches it."""
        return f"http://{LOOPBACK}:{self.server_port}"

    @property
    def database_dir(self) -> Path:
        return self.home / "postgres"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def run(self) -> Path:
        """Lock and state of the supervisor."""
        return self.home / "run"

    @property
    def agent_dir(self) -> Path:
        return self.home / "agent"

    @property
    def hub_dir(self) -> Path:
        return self.home / "hub"

    @property
    def node_dir(self) -> Path:
        """The hub's proxy and, where the machine has none, Node."""
        return self.home / "node"

    @property
    def admin_password_file(self) -> Path:
        return self.secrets / "admin-password"

    @property
    def hub_token_file(self) -> Path:
        return self.secrets / "hub-token"

    @property
    def hub_start_token_file(self) -> Path:
        """With it the server may start the hub's servers."""
        self.secret("hub-start-token")
        return self.secrets / "hub-start-token"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def make_folders(self) -> None:
        """Others may enter the data folder, because PostgreSQL's account must; each part closes its own."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            for folder in (self.secrets, self.run, self.agent_dir, self.hub_dir, self.logs, self.node_dir):
                folder.mkdir(mode=0o700, exist_ok=True)
            self.secrets.chmod(0o700)
        except OSError as error:
            raise StepFailed(
                "data folder",
                f"cannot make {self.home}: {error}",
                "Set REMOTEGPU_HOME to a folder that you may write.",
            ) from error

    def secret(self, name: str) -> str:
        """A secret of this installation, made at its first use."""
        path = self.secrets / name
        if not path.exists():
            write_private(path, secrets.token_hex(32))
        return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, mode 0600."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(temporary).replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file, or an empty one where there is no readable file."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def console_script(name: str) -> str:
    """A program of the Python environment that runs us."""
    return str(Path(sys.executable).with_name(name))


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, or a word that there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) or "(the log is empty)"
    except FileNotFoundError:
        return "(there is no log)"
