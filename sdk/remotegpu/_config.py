"""Where the server is and who we are: arguments, then the environment, then what `remotegpu login` kept."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from remotegpu.errors import NotConfigured

URL_VARIABLE = "REMOTEGPU_URL"
TOKEN_VARIABLE = "REMOTEGPU_TOKEN"  # noqa: S105


@dataclass(frozen=True)
class Target:
    """A server and the token for it."""

    url: str
    token: str | None = field(repr=False)


def resolve(url: str | None, token: str | None) -> Target:
    """Find server and token. A token is only ever sent to the server it was given with.

    An empty `token` means none, whatever is configured. :raises NotConfigured: no address is known.
    """
    env_url = _clean(os.environ.get(URL_VARIABLE))
    env_token = os.environ.get(TOKEN_VARIABLE)
    if url is not None:
        url = _clean(url)
    chosen = url or env_url
    if token is None and env_token and (env_url is None or chosen == env_url):
        token = env_token
    if chosen is None or token is None:
        saved = load()
        if saved is not None:
            chosen = chosen or saved.url
            if token is None and chosen == saved.url:
                token = saved.token
    if chosen is None:
        raise NotConfigured(
            "No server is known. Sign in with `remotegpu login URL`, "
            f"set {URL_VARIABLE} and {TOKEN_VARIABLE}, or pass url= and token=."
        )
    return Target(check_url(chosen), token.strip() if token else None)


def _clean(url: str | None) -> str | None:
    return url.strip().rstrip("/") or None if url else None


def check_url(url: str) -> str:
    """The address without a trailing slash. :raises NotConfigured: it cannot be one of a server."""
    url = _clean(url) or ""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise NotConfigured("The server's address is not a URL like https://gpu.example.org.") from None
    if parts.username is not None or parts.password is not None:
        raise NotConfigured("The server's address must not hold a user name or password; use a token.")
    plain = url.isascii() and url.isprintable() and " " not in url
    if not usable or not plain or parts.query or parts.fragment:
        raise NotConfigured(
            f"The server's address is not a URL like https://gpu.example.org: {url!r}."
            " It starts with http:// or https://."
        )
    return url


def path() -> Path:
    """Where `remotegpu login` keeps server and token."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(folder) if folder else Path.home() / ".config") / "remotegpu" / "credentials.json"
    except RuntimeError as error:
        raise NotConfigured("There is no home folder to keep credentials in; set XDG_CONFIG_HOME.") from error


def load() -> Target | None:
    """What was kept, or ``None``. :raises NotConfigured: the file is broken, or others can read it."""
    try:
        file = path()
    except NotConfigured:
        return None
    try:
        with file.open(encoding="utf-8") as opened:
            if os.fstat(opened.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise NotConfigured(
                    f"Others can read {file}. Close it with `chmod 600 {file}`, and sign in again."
                )
            kept = json.load(opened)
        return Target(check_url(str(kept["url"])), str(kept["token"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotConfigured(f"{file} cannot be read. Sign in again with `remotegpu login URL`.") from error


def save(target: Target) -> Path:
    """Keep server and token, readable by the owner only; the old file stays until the new one is whole."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".credentials-")  # made with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({"url": target.url, "token": target.token}, opened)
            opened.flush()
            os.fsync(opened.fileno())
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    return file


def forget() -> bool:
    """Remove what was kept; true when there was something."""
    try:
        path().unlink()
    except FileNotFoundError:
        return False
    return True
