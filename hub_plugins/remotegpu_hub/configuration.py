"""`configure(c)`: a hub on RemoteGPU in three lines of ``jupyterhub_config.py``."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from remotegpu_hub.authenticator import ADMIN_GROUP

ADMIN_SCOPE = "custom:remotegpu:admin"
SERVICE = "remotegpu"
STARTS = "remotegpu-starts"
TEMPLATES = Path(__file__).parent / "templates"


class ConfigurationMissing(Exception):
    """A value that only the site can know was not given."""


def configure(
    c: Any,
    *,
    server_url: str | None = None,
    hub_token: str | None = None,
    hub_token_file: str | Path | None = None,
    data_folder: str | Path | None = None,
    pages: bool = True,
    pages_url: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Set up authenticator, spawner, pages, roles, proxy and the key of the auth state.

    `server_url` is the RemoteGPU server (else ``REMOTEGPU_URL``). `hub_token` is the hub's service token, or
    `hub_token_file` a file with it (else ``REMOTEGPU_HUB_TOKEN_FILE``). `data_folder` is where the hub keeps
    its keys (else ``REMOTEGPU_HUB_DATA``, else the working directory). `pages` adds the service with the GPU
    pages; the hub starts it at `pages_url` (else a free port of 127.0.0.1, which is right where the hub's
    proxy runs on the same machine). `environ` replaces the environment variables.

    With ``REMOTEGPU_HUB_API_TOKEN_FILE``, a file that the RemoteGPU server reads too, that may start the
    servers whose place in its queue was kept (scope ``start:servers``).

    ``make up`` also sets ``REMOTEGPU_HUB_BIND_URL`` (where people come in), ``REMOTEGPU_HUB_API_BIND`` and
    ``REMOTEGPU_HUB_CONNECT_URL`` (where the hub listens for, and is reached by, proxy and notebooks),
    ``REMOTEGPU_PROXY_API_URL`` with ``CONFIGPROXY_AUTH_TOKEN`` (a proxy that runs apart) and
    ``REMOTEGPU_HUB_DATABASE_URL``.

    What a site has set itself, before or after, stays as it is. Its lists of services, roles, scopes and
    templates are added to; set them before, or append to them.

    :raises ConfigurationMissing: no server or no token is known.
    """
    environ = os.environ if environ is None else environ
    server_url = server_url or environ.get("REMOTEGPU_URL")
    if not server_url:
        raise ConfigurationMissing("Pass server_url=... to remotegpu_hub.configure, or set REMOTEGPU_URL.")
    token = hub_token or _token_from(hub_token_file or environ.get("REMOTEGPU_HUB_TOKEN_FILE"))
    folder = Path(data_folder or environ.get("REMOTEGPU_HUB_DATA", "."))

    _default(c.JupyterHub, "authenticator_class", "remotegpu")
    _default(c.JupyterHub, "spawner_class", "remotegpu")
    for plugin in (c.RemoteGPUAuthenticator, c.RemoteGPUSpawner):
        _default(plugin, "server_url", server_url)
        _default(plugin, "hub_token", token)
    if not environ.get("JUPYTERHUB_CRYPT_KEY"):
        _default(c.CryptKeeper, "keys", [_crypt_key(folder)])
    _default(c.JupyterHub, "cookie_secret_file", str(folder / "cookie-secret"))
    c.JupyterHub.template_paths.insert(0, str(TEMPLATES))
    _servers(c, environ)
    _addresses(c, environ)
    _roles(c)
    if start_token := environ.get("REMOTEGPU_HUB_API_TOKEN_FILE"):
        _starts(c, _token_from(start_token))
    if pages:
        _pages(c, pages_url or f"http://127.0.0.1:{_free_port()}", server_url, token)


def _servers(c: Any, environ: Mapping[str, str]) -> None:
    """Notebooks outlive the hub: nothing is stopped when it is."""
    _default(c.JupyterHub, "cleanup_servers", False)
    _default(c.JupyterHub, "allow_named_servers", True)
    _default(c.JupyterHub, "concurrent_spawn_limit", 400)  # each one that waits for a GPU counts
    if url := environ.get("REMOTEGPU_HUB_DATABASE_URL"):
        _default(c.JupyterHub, "db_url", url)


def _addresses(c: Any, environ: Mapping[str, str]) -> None:
    if url := environ.get("REMOTEGPU_HUB_BIND_URL"):
        _default(c.JupyterHub, "bind_url", url)
    if url := environ.get("REMOTEGPU_HUB_API_BIND"):
        _default(c.JupyterHub, "hub_bind_url", url)
    if url := environ.get("REMOTEGPU_HUB_CONNECT_URL"):
        _default(c.JupyterHub, "hub_connect_url", url)
        _default(c.Spawner, "hub_connect_url", "{0.scheme}://{0.netloc}".format(urlsplit(url)))
    if url := environ.get("REMOTEGPU_PROXY_API_URL"):
        _default(c.ConfigurableHTTPProxy, "should_start", False)
        _default(c.ConfigurableHTTPProxy, "api_url", url)
        _default(c.JupyterHub, "cleanup_proxy", False)


def _roles(c: Any) -> None:
    described = {ADMIN_SCOPE: {"description": "Manage hosts, images, quotas and every environment"}}
    c.JupyterHub.custom_scopes.update(described)
    admins = {
        "name": "remotegpu-admin",
        "description": "Admins of the RemoteGPU platform",
        "groups": [ADMIN_GROUP],
        "scopes": [
            "admin-ui",
            "list:users",
            "read:users",
            "read:servers",
            "delete:servers",
            ADMIN_SCOPE,
        ],
    }
    c.JupyterHub.load_roles.append(admins)


def _starts(c: Any, token: str) -> None:
    """The RemoteGPU server may start servers whose place in the queue it kept, and nothing else."""
    c.JupyterHub.services.append({"name": STARTS, "api_token": token, "display": False})
    c.JupyterHub.load_roles.append(
        {
            "name": STARTS,
            "description": "Starts servers whose turn in the queue has come",
            "services": [STARTS],
            "scopes": ["start:servers"],
        }
    )


def _pages(c: Any, url: str, server_url: str, token: str) -> None:
    """The hub starts them, gives them their OAuth client, and shows them under Services."""
    service = {
        "name": SERVICE,
        "url": url,
        "command": [sys.executable, "-m", "remotegpu_hub.pages"],
        "environment": {"REMOTEGPU_URL": server_url, "REMOTEGPU_HUB_TOKEN": token},
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": [ADMIN_SCOPE],
        "display": True,
    }
    c.JupyterHub.services.append(service)
    c.JupyterHub.extra_user_scopes.update({f"access:services!service={SERVICE}"})


def _default(section: Any, name: str, value: object) -> None:
    """Set what the site has not."""
    if name not in section:
        setattr(section, name, value)


def _token_from(path: str | Path | None) -> str:
    if not path:
        raise ConfigurationMissing(
            "Pass hub_token=... to remotegpu_hub.configure, or set REMOTEGPU_HUB_TOKEN_FILE. "
            "`remotegpu-server init --hub-token-file FILE` writes it."
        )
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigurationMissing(f"The hub's token cannot be read from {path}: {error.strerror}.") from None


def _crypt_key(folder: Path) -> bytes:
    """The key of the auth state: made once and kept with mode 0600."""
    path = folder / "crypt-key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return bytes.fromhex(path.read_text().strip())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
