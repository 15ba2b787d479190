"""The process: addresses, templates, and an end when the hub ends."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, PrefixLoader
from jupyterhub._data import DATA_FILES_PATH
from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado.httpserver import HTTPServer
from tornado.web import Application

from remotegpu import AsyncClient
from remotegpu_hub.pages import formatting, handlers

HUB_WATCH_S = 1.0


def make_app(environ: Mapping[str, str]) -> Application:
    """The pages below the service's prefix."""
    prefix = environ["JUPYTERHUB_SERVICE_PREFIX"]
    return Application(
        [
            (prefix + "oauth_callback", HubOAuthCallbackHandler),
            (prefix, handlers.Overview),
            (prefix + "content", handlers.Content),
            (prefix + "hosts", handlers.Hosts),
            (prefix + r"hosts/([a-z0-9-]+)/(cordon|uncordon|enroll)", handlers.HostAction),
        ],
        default_handler_class=handlers.NotFound,
        client=AsyncClient(url=environ["REMOTEGPU_URL"], token=environ["REMOTEGPU_HUB_TOKEN"], timeout_s=15),
        server_url=environ["REMOTEGPU_URL"],
        templates=_templates(),
        hub_prefix=environ.get("JUPYTERHUB_BASE_URL", "/") + "hub/",
        prefix=prefix,
        cookie_secret=secrets.token_bytes(32),
        xsrf_cookies=True,
    )


def _templates() -> Environment:
    """Ours first, then the hub's, whose page.html ours extend."""
    hub = FileSystemLoader(str(Path(DATA_FILES_PATH) / "templates"))
    ours = PackageLoader("remotegpu_hub.pages")
    found = Environment(
        loader=ChoiceLoader([PrefixLoader({"templates": hub}), ours, hub]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(gib=formatting.gib, percent=formatting.percent, ago=formatting.ago)
    return found


async def serve(environ: Mapping[str, str]) -> None:
    """Answer until the hub that started us is gone: a killed hub cannot stop its services."""
    hub = os.getppid()
    address = urlsplit(environ["JUPYTERHUB_SERVICE_URL"])
    server = HTTPServer(make_app(environ), xheaders=True)
    server.listen(address.port or 80, address.hostname or "127.0.0.1")
    while os.getppid() == hub:  # noqa: ASYNC110  no event tells that a parent was killed
        await asyncio.sleep(HUB_WATCH_S)
    server.stop()
