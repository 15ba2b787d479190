"""Requests. Reading changes nothing; what changes something is a form with a token of its own."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from jupyterhub.services.auth import HubOAuthenticated
from tornado import web

from remotegpu import AsyncClient, errors
from remotegpu.types.hosts import EnrollmentToken
from remotegpu_hub.configuration import ADMIN_SCOPE
from remotegpu_hub.pages import overview

# page.html of the hub has inline scripts, so they are allowed; nothing is fetched from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; form-action 'self'"
)


class Page(HubOAuthenticated, web.RequestHandler):
    """Somebody who signed in at the hub."""

    async def prepare(self) -> None:
        await self.hub_auth.get_user(self, sync=False)  # asked here once, so that nothing blocks later

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    @property
    def username(self) -> str:
        return str(self.current_user["name"])

    @property
    def is_admin(self) -> bool:
        return ADMIN_SCOPE in self.current_user.get("scopes", [])

    def client(self) -> AsyncClient:
        """The server, as the person who looks: it judges every request by that person's own rights."""
        client: AsyncClient = self.settings["client"]
        return client.on_behalf_of(self.username)

    def admin_client(self) -> AsyncClient:
        """The same for admins of the platform; everybody else gets 403."""
        if not self.is_admin:
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "Only platform admins may do this.")
        return self.client()

    async def show(self, template: str, **values: Any) -> None:
        self.finish(self.settings["templates"].get_template(template).render(**self._page(), **values))

    def _page(self) -> dict[str, Any]:
        """What the hub's page.html wants to know."""
        hub = self.settings["hub_prefix"]
        user = self.current_user
        shown = {**user, "json_escaped_name": json.dumps(user["name"])[1:-1]} if user else None
        return {
            "base_url": hub,
            "prefix": hub.removesuffix("hub/"),
            "service_prefix": self.settings["prefix"],
            "user": shown,
            "login_url": f"{hub}login",
            "logout_url": f"{hub}logout",
            "parsed_scopes": {"admin-ui"} if user and self.is_admin else set(),
            "services": [{"name": "remotegpu", "href": self.settings["prefix"]}],
            "no_spawner_check": True,
            "static_url": lambda path, include_version=True: f"{hub}static/{path}",
            "version_hash": "",
            "xsrf_token": self.xsrf_token.decode() if user else "",
            "is_admin": bool(user) and self.is_admin,
        }

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        message = HTTPStatus(status_code).phrase
        if isinstance(error, web.HTTPError) and error.log_message:
            message = error.log_message
        elif isinstance(error, errors.RemoteGPUError):
            status_code = error.http_status if isinstance(error, errors.ApiError) else 503
            self.set_status(status_code)
            message = str(error)
        template = self.settings["templates"].get_template("remotegpu-error.html")
        self.finish(template.render(**self._page(), status_code=status_code, message=message))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, errors.RemoteGPUError):
            super().log_exception(typ, value, tb)


class Overview(Page):
    """`GET`: capacity, own environments, quota; for admins hosts and all GPUs."""

    template = "remotegpu.html"

    @web.authenticated
    async def get(self) -> None:
        await self.show_overview()

    async def show_overview(self, *, enrollment: EnrollmentToken | None = None, host: str = "") -> None:
        chosen = self.get_query_argument("host", "") or None
        view = await overview.load(
            self.client(), username=self.username, admin=self.is_admin, host=chosen if self.is_admin else None
        )
        await self.show(
            self.template,
            view=view,
            chosen_host=chosen,
            enrollment=enrollment,
            enrollment_host=host,
            server_url=self.settings["server_url"],
        )


class Content(Overview):
    """The part of the page that is fetched again every few seconds."""

    template = "remotegpu-content.html"


class Hosts(Overview):
    """`POST`: a new host, and the command with which its agent joins."""

    @web.authenticated
    async def post(self) -> None:
        client = self.admin_client()
        name = self.get_body_argument("name", "").strip().lower()
        await client.hosts.create(name=name)
        await self.show_overview(enrollment=await client.hosts.create_enrollment_token(name), host=name)

    @web.authenticated
    async def get(self) -> None:
        self.redirect(self.settings["prefix"])


class HostAction(Overview):
    """`POST`: cordon, uncordon, or another token for an agent to join with."""

    @web.authenticated
    async def post(self, host: str, action: str) -> None:
        client = self.admin_client()
        if action == "enroll":
            await self.show_overview(enrollment=await client.hosts.create_enrollment_token(host), host=host)
            return
        await (client.hosts.cordon(host) if action == "cordon" else client.hosts.uncordon(host))
        self.redirect(self.settings["prefix"])

    @web.authenticated
    async def get(self, host: str, action: str) -> None:
        self.redirect(self.settings["prefix"])


class NotFound(Page):
    """Everything else."""

    @web.authenticated
    async def get(self) -> None:
        raise web.HTTPError(HTTPStatus.NOT_FOUND, "There is no such page.")
