"""Settings of the server: ``REMOTEGPU_*`` variables, read once in ``__main__`` and passed down."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.fernet import Fernet


class SettingsError(Exception):
    """A variable has a wrong value; the text names it and says what would be right."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the server can be told. Durations are seconds."""

    database_url: str = field(repr=False)
    """``postgresql+psycopg://…``"""
    secret_key: str = field(repr=False)
    """Fernet key for ``secret_env`` and stored answers. Losing it loses those, nothing else."""
    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 8003),)
    """Addresses to serve on."""
    workload_url: str = "http://127.0.0.1:8003"
    """URL of this server as workloads see it (``REMOTEGPU_URL`` inside a container)."""
    hub_url: str = ""
    """Where people reach the hub, in access information; empty: not known."""
    trusted_proxies: tuple[str, ...] = ()
    """Client addresses whose ``X-Forwarded-For`` is believed, besides the hub's service token."""
    hub_api_url: str = ""
    """The hub's REST API (``http://127.0.0.1:8001/hub/api``), to start servers whose turn has come; empty: no
    place is kept for hub servers."""
    hub_api_token: str = field(default="", repr=False)
    """A token of the hub with the scope ``start:servers``."""
    heartbeat_s: float = 10.0
    """Pace that agents are asked for."""
    suspect_after_s: float = 30.0
    """Silence after which a host takes no new work."""
    unreachable_after_s: float = 50.0
    """Silence after which its environments are shown as unreachable."""
    restart_grace_s: float = 30.0
    """After a start of the loops no host is judged by older silence."""
    attempt_renew_s: float = 20.0
    """Pace at which agents renew the lease of an attempt."""
    attempt_lease_s: float = 90.0
    """Without a renewal an attempt is shown as late after that."""
    attempt_fence_s: float = 240.0
    """An agent without an answer ends an attempt by itself after that, and kills it after the grace."""
    attempt_fence_grace_s: float = 30.0
    attempt_lost_s: float = 300.0
    """Without a renewal an attempt is given up after that, and another one may follow."""
    queue_tick_s: float = 1.0
    """Pause between two passes over the queue when nothing wakes it."""
    login_window_s: float = 300.0
    """Failed sign-ins count this long."""
    login_failures_per_account: int = 10
    login_failures_per_address: int = 50
    smtp_url: str | None = field(default=None, repr=False)
    """``smtp://[user:password@]host[:port]`` or ``smtps://…``; without it no mail is sent."""
    mail_from: str = "remotegpu@localhost"
    oidc_issuer: str | None = None
    """URL of an OpenID Connect provider; without it people sign in with passwords only."""
    oidc_client_id: str = ""
    oidc_client_secret: str = field(default="", repr=False)
    oidc_redirect_uri: str = ""
    """The page that hands state and code to ``/v1/auth/oidc:finish``; known to the provider, exactly so."""
    oidc_customer: str | None = None
    """Customer of new accounts that no group maps; ``None`` refuses them."""
    oidc_customers: Mapping[str, str] = field(default_factory=dict)
    """Customer by group of the provider."""
    oidc_admin_group: str | None = None
    password_reset_url: str | None = None
    """The page where people set a new password; the secret comes behind its ``#``."""
    event_retention_s: float = 90 * 86400.0
    watchdog_s: float = 300.0
    """A background loop that hangs this long ends the process, which its supervisor starts again."""
    pool_size: int = 20
    """Connections to the database at most. They stay open: on a new one every statement is planned anew."""
    blob_dir: Path = field(default_factory=lambda: data_folder(os.environ) / "blobs")
    """Where the output and the artifacts of tasks lie; several servers share it."""
    log_level: str = "info"
    crash_at: str | None = None
    """Fault tests only, see ``fault_points.py``."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_s * 2 <= self.suspect_after_s < self.unreachable_after_s:
            raise SettingsError(
                "REMOTEGPU_HEARTBEAT_S, REMOTEGPU_SUSPECT_AFTER_S and REMOTEGPU_UNREACHABLE_AFTER_S: "
                "two heartbeats must fit into suspect_after_s, and that must be below unreachable_after_s"
            )
        if not 0 < 3 * self.attempt_renew_s < self.attempt_lease_s < self.attempt_fence_s:
            raise SettingsError(
                "REMOTEGPU_ATTEMPT_RENEW_S, REMOTEGPU_ATTEMPT_LEASE_S and REMOTEGPU_ATTEMPT_FENCE_S: three "
                "renewals must fit into lease_s, and that must be below fence_s"
            )
        if not 0 < self.attempt_fence_grace_s < self.attempt_lost_s - self.attempt_fence_s:
            raise SettingsError(
                "REMOTEGPU_ATTEMPT_LOST_S must be above attempt_fence_s and attempt_fence_grace_s together: "
                "an attempt may be taken for gone only when its agent has surely ended it"
            )
        if self.smtp_url and urlsplit(self.smtp_url).scheme not in ("smtp", "smtps"):
            raise SettingsError("REMOTEGPU_SMTP_URL must be an smtp:// or smtps:// URL")
        if self.oidc_issuer and not (self.oidc_client_id and self.oidc_redirect_uri):
            raise SettingsError(
                "REMOTEGPU_OIDC_ISSUER needs REMOTEGPU_OIDC_CLIENT_ID and REMOTEGPU_OIDC_REDIRECT_URI"
            )
        if urlsplit(self.workload_url).scheme not in ("http", "https"):
            raise SettingsError("REMOTEGPU_WORKLOAD_URL must be an http:// or https:// URL")
        for name in ("queue_tick_s", "login_window_s", "event_retention_s", "restart_grace_s", "watchdog_s"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"REMOTEGPU_{name.upper()} must be above 0")
        for name in ("login_failures_per_account", "login_failures_per_address", "pool_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"REMOTEGPU_{name.upper()} must be 1 or more")


def data_folder(environ: Mapping[str, str]) -> Path:
    """``REMOTEGPU_HOME``, or its default below the user's home."""
    return Path(environ.get("REMOTEGPU_HOME") or "~/.local/share/remotegpu").expanduser()


def from_environ(environ: Mapping[str, str], *, database_url: str) -> Settings:
    """Read the variables. Makes the secret key at first use. Raises :class:`SettingsError`."""
    listen = _addresses(environ.get("REMOTEGPU_LISTEN", "127.0.0.1:8003"))
    key_file = environ.get("REMOTEGPU_SECRET_KEY_FILE")
    values: dict[str, object] = {}
    for name in ("heartbeat_s", "suspect_after_s", "unreachable_after_s", "restart_grace_s", "queue_tick_s"):
        _number(environ, name, float, values)
    for name in ("login_window_s", "event_retention_s", "watchdog_s"):
        _number(environ, name, float, values)
    for name in ("renew_s", "lease_s", "fence_s", "fence_grace_s", "lost_s"):
        _number(environ, f"attempt_{name}", float, values)
    for name in ("login_failures_per_account", "login_failures_per_address", "pool_size"):
        _number(environ, name, int, values)
    return Settings(
        database_url=database_url,
        secret_key=_secret_key(
            Path(key_file) if key_file else data_folder(environ) / "secrets" / "server.key"
        ),
        listen=listen,
        workload_url=environ.get("REMOTEGPU_WORKLOAD_URL", f"http://{listen[0][0]}:{listen[0][1]}").rstrip(
            "/"
        ),
        hub_url=environ.get("REMOTEGPU_HUB_URL", "").rstrip("/"),
        trusted_proxies=_proxies(environ.get("REMOTEGPU_TRUSTED_PROXIES", "")),
        **_oidc(environ),
        smtp_url=environ.get("REMOTEGPU_SMTP_URL") or None,
        mail_from=environ.get("REMOTEGPU_MAIL_FROM", "remotegpu@localhost"),
        password_reset_url=environ.get("REMOTEGPU_PASSWORD_RESET_URL") or None,
        hub_api_url=environ.get("REMOTEGPU_HUB_API_URL", "").rstrip("/"),
        hub_api_token=_token(environ.get("REMOTEGPU_HUB_API_TOKEN_FILE")),
        blob_dir=Path(environ.get("REMOTEGPU_BLOB_DIR") or data_folder(environ) / "blobs"),
        log_level=environ.get("REMOTEGPU_LOG_LEVEL", "info").lower(),
        crash_at=environ.get("REMOTEGPU_CRASH_AT"),
        **values,  # type: ignore[arg-type]
    )


def _oidc(environ: Mapping[str, str]) -> dict[str, Any]:
    """``REMOTEGPU_OIDC_*``; the secret is in a file."""
    issuer = environ.get("REMOTEGPU_OIDC_ISSUER")
    if not issuer:
        return {}
    file = environ.get("REMOTEGPU_OIDC_CLIENT_SECRET_FILE")
    pairs = [one.partition("=") for one in environ.get("REMOTEGPU_OIDC_CUSTOMERS", "").split(",") if one]
    if any(not equals for _, equals, _ in pairs):
        raise SettingsError("REMOTEGPU_OIDC_CUSTOMERS must be group=customer, comma separated")
    return {
        "oidc_issuer": issuer,
        "oidc_client_id": environ.get("REMOTEGPU_OIDC_CLIENT_ID", ""),
        "oidc_client_secret": Path(file).read_text().strip() if file else "",
        "oidc_redirect_uri": environ.get("REMOTEGPU_OIDC_REDIRECT_URI", ""),
        "oidc_customer": environ.get("REMOTEGPU_OIDC_CUSTOMER") or None,
        "oidc_customers": {group.strip(): customer.strip() for group, _, customer in pairs},
        "oidc_admin_group": environ.get("REMOTEGPU_OIDC_ADMIN_GROUP") or None,
    }


def _token(path: str | None) -> str:
    try:
        return Path(path).read_text().strip() if path else ""
    except OSError as error:
        raise SettingsError(f"REMOTEGPU_HUB_API_TOKEN_FILE: {path}: {error.strerror}") from None


def _number(environ: Mapping[str, str], name: str, kind: type, into: dict[str, object]) -> None:
    variable = f"REMOTEGPU_{name.upper()}"
    if variable in environ:
        try:
            into[name] = kind(environ[variable])
        except ValueError:
            raise SettingsError(f"{variable} must be a number, not {environ[variable]!r}") from None


def _addresses(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for part in text.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not colon or not port.isdigit() or not 0 < int(port) < 65536:
            raise SettingsError(f"REMOTEGPU_LISTEN must be host:port, comma separated, not {text!r}")
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


def _proxies(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in found:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise SettingsError(f"REMOTEGPU_TRUSTED_PROXIES: {address!r} is not an IP address") from None
    return found


def _secret_key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except FileNotFoundError:
        key = _new_key(path)
    try:
        Fernet(key)
    except ValueError:
        raise SettingsError(f"REMOTEGPU_SECRET_KEY_FILE: {path} does not hold a key") from None
    return key


def _new_key(path: Path) -> str:
    """Written beside and linked into place, so that two starting processes agree on one key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(Fernet.generate_key().decode() + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # the other process was first
    finally:
        draft.unlink()
    return path.read_text().strip()
