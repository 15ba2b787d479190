"""Users live in the RemoteGPU server; the hub asks it who may come in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from jupyterhub.auth import Authenticator
from jupyterhub.handlers.static import CacheControlStaticFilesHandler
from tornado import web
from traitlets import Float, Unicode, default

from remotegpu import AsyncClient, errors
from remotegpu.types.identity import AccountStatus, Identity, User, UserRole
from remotegpu.types.workspaces import MemberStatus, WorkspaceKind
from remotegpu_hub.connection import shared_client
from remotegpu_hub.starts import ExplainHandler, WaitHandler

STATIC = Path(__file__).parent / "static"
ADMIN_GROUP = "remotegpu-admins"
"""Members hold the custom scope of the admin pages."""


class RemoteGPUAuthenticator(Authenticator):
    """Checks user name and password at the RemoteGPU server, and carries role and customer into the hub."""

    server_url = Unicode(help="Address of the RemoteGPU server.").tag(config=True)
    hub_token = Unicode(help="The hub's service token.").tag(config=True)
    refresh_timeout = Float(2.0, help="Seconds a refresh may take before the last known answer stands.").tag(
        config=True
    )

    @default("enable_auth_state")
    def _default_enable_auth_state(self) -> bool:
        return True

    @default("manage_groups")
    def _default_manage_groups(self) -> bool:
        return True

    @default("allow_all")
    def _default_allow_all(self) -> bool:
        return True  # the server decides; `authenticate` refuses

    @default("refresh_pre_spawn")
    def _default_refresh_pre_spawn(self) -> bool:
        return True

    def client(self) -> AsyncClient:
        """The RemoteGPU server, as the hub."""
        return shared_client(self.server_url, self.hub_token)

    def get_handlers(self, app: object) -> list[tuple[Any, ...]]:
        return [
            *super().get_handlers(app),
            (r"/remotegpu/explain", ExplainHandler),
            (r"/remotegpu/wait", WaitHandler),
            # Files of their own: a site may forbid inline scripts.
            (r"/remotegpu/static/(.*)", CacheControlStaticFilesHandler, {"path": str(STATIC)}),
        ]

    async def authenticate(self, handler: Any, data: dict[str, str]) -> dict[str, Any] | None:
        """The user, ``None`` for a wrong password, or a refusal that says what to do."""
        try:
            user = await self.client().auth.verify(
                username=data["username"],
                password=data["password"],
                client_address=handler.request.remote_ip,
            )
            identity = await self.client().on_behalf_of(user.username).me.get()
        except (errors.InvalidCredentials, errors.Invalid):
            return None
        except errors.RateLimited as error:
            wait = f" Try again in {error.retry_after_s:.0f} seconds." if error.retry_after_s else ""
            raise web.HTTPError(429, f"Too many failed sign-ins.{wait}") from error
        except errors.AccountSuspended as error:
            raise web.HTTPError(403, "This account is suspended. Ask your administrator.") from error
        except errors.RemoteGPUError as error:
            self.log.error("cannot check a password: %s", error)
            raise web.HTTPError(
                503,
                "Signing in is not possible at the moment: the RemoteGPU server does not answer. "
                "Try again in a minute.",
            ) from error
        if user.password_change_required:
            raise web.HTTPError(
                403,
                "This is a one-time password. Set one of your own first: `remotegpu login`, then "
                "`remotegpu password`.",
            )
        return auth_model(user, identity)

    async def refresh_user(self, user: Any, handler: Any | None = None, **_: object) -> bool | dict[str, Any]:
        """What the server says of the user now. Never raises: an outage must not log anybody out."""
        try:
            acting = self.client().on_behalf_of(user.name)
            identity = await asyncio.wait_for(acting.me.get(), self.refresh_timeout)
            found = identity.user
        except (errors.NotFound, errors.AccountSuspended):
            return self._log_out(handler)
        except Exception as error:  # noqa: BLE001  any exception would log the user out
            self.log.warning(
                "%s is taken as before, the RemoteGPU server does not tell: %s", user.name, error
            )
            return True
        if found is None or found.status is not AccountStatus.ACTIVE:
            return self._log_out(handler)
        return auth_model(found, identity)

    @staticmethod
    def _log_out(handler: Any | None) -> bool:
        # Without this mark the hub answers a spawn of a logged out user with 500 instead of the login page.
        if handler is not None and not hasattr(handler, "_token_authenticated"):
            handler._token_authenticated = False
        return False


def auth_model(user: User, identity: Identity) -> dict[str, Any]:
    """The hub's view of a user. ``admin`` and ``groups`` are always explicit, so that demotion works.

    Groups of workspaces carry the id: names may change, and with them who would be meant.
    """
    admin = user.role is UserRole.ADMIN
    workspaces = [
        f"workspace-{one.id}"
        for one in identity.workspaces
        if one.kind is WorkspaceKind.TEAM and one.member_status is MemberStatus.ACTIVE
    ]
    return {
        "name": user.username,
        "admin": admin,
        "groups": [
            f"customer-{user.customer_name}",
            *workspaces,
            *([ADMIN_GROUP] if admin else []),
        ],
        "auth_state": {"user_id": user.id},
        "user_info": {"name": user.username, "display_name": user.display_name or user.username},
    }
