"""Everything an operator can choose, built once in ``__main__`` and passed down."""

from __future__ import annotations

import ipaddress
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path


class SettingsError(Exception):
    """A setting is wrong; the message says which and what to write instead."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one agent runs."""

    url: str
    """The RemoteGPU server."""
    state_dir: Path
    """Credential, journal, status file and, with the process runtime, logs and records."""
    home_root: Path
    """Homes of this host: one directory for each volume id."""
    runtime: str = "auto"
    """``docker``, ``process``, or ``auto``: Docker where an engine answers, else processes."""
    docker_host: str | None = None
    """``unix:///path`` or ``tcp://host:port``; left out: aiodocker's usual search."""
    address: str = "127.0.0.1"
    """Where the hub's proxy reaches environments; the only address that ports are published on."""
    simulate_gpus: str | None = None
    """Such as ``2xA100-80GB,1xH100-80GB``."""
    shared_home_name: str | None = None
    shared_home_dir: Path | None = None
    labels: dict[str, str] = field(default_factory=dict)
    network_pool: str = "10.213.0.0/16"
    """Each workload's network takes a /28 of it that nothing else uses."""
    poll_wait_s: float = 25.0
    """How long the server may hold a long poll."""
    observe_every_s: float = 5.0
    """Pace of the full listing that backs up the engine's events."""
    pull_silence_s: float = 120.0
    """An image transfer that moves nothing for this long is given up."""
    metrics_listen: tuple[str, int] | None = None
    """Address and port of ``/metrics``; left out: there is none."""
    metrics_token: str | None = field(default=None, repr=False)
    """What a scrape shows as bearer; left out: only loopback addresses listen."""
    sample_every_s: float = 1.0
    """Pace of the GPU and host measurements."""
    max_tasks: int = 4 * (os.cpu_count() or 1)
    """Attempts of tasks that run at once; the server places by CPUs, memory and GPUs besides."""
    crash_at: str | None = None
    """Fault tests only: name of the point at which the process ends itself."""

    def __post_init__(self) -> None:
        if self.metrics_listen is None or self.metrics_token is not None:
            return
        if not ipaddress.ip_address(self.metrics_listen[0]).is_loopback:
            raise SettingsError(
                "--metrics-listen on an address that others reach needs --metrics-token-file with a secret."
            )


@dataclass(frozen=True)
class Credential:
    """What enrolment gave this host. The secret never leaves its file and the Authorization header."""

    url: str
    host_id: str
    host_name: str
    secret: str


def credential_path(state_dir: Path) -> Path:
    return state_dir / "credential.json"


def load_credential(state_dir: Path) -> Credential:
    """Raises SettingsError where the host is not enrolled yet."""
    path = credential_path(state_dir)
    try:
        return Credential(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise SettingsError(
            f"This host is not enrolled: {path} does not exist. "
            "Make a token with `remotegpu host add`, then run `remotegpu-agent enroll`."
        ) from None
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} is damaged ({error}). Enrol this host again.") from None


def save_credential(state_dir: Path, credential: Credential) -> None:
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(credential_path(state_dir), json.dumps(vars(credential)))


def write_private(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file at once, mode 0600: a reader, or a crash, sees the old text or the new, never half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
