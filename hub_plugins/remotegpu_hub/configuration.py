"""`configure(c)`: a hub on RemoteGPU in three lines of ``jupyterhub_config.py``."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from remotegpu_hub.authenticator import ADMIN_GROUP

ADMIN_SCOPE = "custom:remotegpu:admin"
TEMPLATES = Path(__file__).parent / "templates"


class ConfigurationMissing(Exception):
    """A value that only the site can know was not given."""


def configure(
    c: Any,
    *,
    server_url: str | None = None,
    hub_token: str | None = None,
    data_folder: str | Path | None = None,
) -> None:
    """Set up authenticator, spawner, roles, proxy and the key of the auth state.

    `server_url` is the RemoteGPU server (else ``REMOTEGPU_URL``), `hub_token` the hub's service token (else
    the content of the file ``REMOTEGPU_HUB_TOKEN_FILE``), `data_folder` where the hub keeps its keys (else
    ``REMOTEGPU_HUB_DATA``, else the working directory).

    ``make up`` also sets ``REMOTEGPU_HUB_BIND_URL`` (where people come in), ``REMOTEGPU_HUB_API_BIND`` and
    ``REMOTEGPU_HUB_CONNECT_URL`` (where the hub listens for, and is reached by, proxy and notebooks),
    ``REMOTEGPU_PROXY_API_URL`` with ``CONFIGPROXY_AUTH_TOKEN`` (a proxy that runs apart) and
    ``REMOTEGPU_HUB_DATABASE_URL``. What a site has set itself, before or after, stays as it is; lists are
    added to. :raises ConfigurationMissing: no server or no token is known.
    """
    server_url = server_url or os.environ.get("REMOTEGPU_URL")
    if not server_url:
        raise ConfigurationMissing("Pass server_url=... to remotegpu_hub.configure, or set REMOTEGPU_URL.")
    folder = Path(data_folder or os.environ.get("REMOTEGPU_HUB_DATA", "."))
    token = hub_token or _token_from_file()

    _default(c.JupyterHub, "authenticator_class", "remotegpu")
    _default(c.JupyterHub, "spawner_class", "remotegpu")
    for plugin in (c.RemoteGPUAuthenticator, c.RemoteGPUSpawner):
        _default(plugin, "server_url", server_url)
        _default(plugin, "hub_token", token)
    _default(c.CryptKeeper, "keys", [_crypt_key(folder)])
    _default(c.JupyterHub, "cookie_secret_file", str(folder / "cookie-secret"))
    _servers(c)
    _addresses(c)
    _roles(c)
    c.JupyterHub.template_paths = [*_listed(c.JupyterHub, "template_paths"), str(TEMPLATES)]


def _servers(c: Any) -> None:
    """Notebooks outlive the hub: nothing is stopped when it is."""
    _default(c.JupyterHub, "cleanup_servers", False)
    _default(c.JupyterHub, "allow_named_servers", True)
    _default(c.JupyterHub, "concurrent_spawn_limit", 400)
    _default(c.JupyterHub, "init_spawners_timeout", 10)
    if url := os.environ.get("REMOTEGPU_HUB_DATABASE_URL"):
        _default(c.JupyterHub, "db_url", url)


def _addresses(c: Any) -> None:
    if url := os.environ.get("REMOTEGPU_HUB_BIND_URL"):
        _default(c.JupyterHub, "bind_url", url)
    if url := os.environ.get("REMOTEGPU_HUB_API_BIND"):
        _default(c.JupyterHub, "hub_bind_url", url)
    if url := os.environ.get("REMOTEGPU_HUB_CONNECT_URL"):
        _default(c.JupyterHub, "hub_connect_url", url)
        _default(c.Spawner, "hub_connect_url", "{0.scheme}://{0.netloc}".format(urlsplit(url)))
    if url := os.environ.get("REMOTEGPU_PROXY_API_URL"):
        _default(c.ConfigurableHTTPProxy, "should_start", False)
        _default(c.ConfigurableHTTPProxy, "api_url", url)
        _default(c.JupyterHub, "cleanup_proxy", False)


def _roles(c: Any) -> None:
    custom = dict(c.JupyterHub.custom_scopes) if "custom_scopes" in c.JupyterHub else {}
    custom.setdefault(ADMIN_SCOPE, {"description": "Manage hosts, images, quotas and every environment"})
    c.JupyterHub.custom_scopes = custom
    admins = {
        "name": "remotegpu-admin",
        "description": "Admins of the RemoteGPU platform",
        "groups": [ADMIN_GROUP],
        "scopes": ["admin-ui", "list:users", "read:users", "read:servers", "delete:servers", ADMIN_SCOPE],
    }
    c.JupyterHub.load_roles = [*_listed(c.JupyterHub, "load_roles"), admins]


def _default(section: Any, name: str, value: object) -> None:
    """Set what the site has not."""
    if name not in section:
        setattr(section, name, value)


def _listed(section: Any, name: str) -> list[Any]:
    return list(getattr(section, name)) if name in section else []


def _token_from_file() -> str:
    path = os.environ.get("REMOTEGPU_HUB_TOKEN_FILE")
    if not path:
        raise ConfigurationMissing(
            "Pass hub_token=... to remotegpu_hub.configure, or set REMOTEGPU_HUB_TOKEN_FILE. "
            "`remotegpu-server init --hub-token-file FILE` writes it."
        )
    return Path(path).read_text().strip()


def _crypt_key(folder: Path) -> bytes:
    """The key of the auth state: from the environment, else made once and kept with mode 0600."""
    if keys := os.environ.get("JUPYTERHUB_CRYPT_KEY"):
        return bytes.fromhex(keys.split(";")[0])
    path = folder / "crypt-key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return bytes.fromhex(path.read_text().strip())
