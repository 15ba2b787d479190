"""Users live in the RemoteGPU server; the hub asks it who may come in."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.auth import Authenticator
from jupyterhub.handlers.static import CacheControlStaticFilesHandler
from tornado import web
from traitlets import Float, Unicode, default

from remotegpu import AsyncClient, errors
from remotegpu.types.identity import AccountStatus, Identity, User, UserRole
from remotegpu.types.workspaces import MemberStatus, WorkspaceKind
from remotegpu_hub.connection import shared_client
from remotegpu_hub.sign_in import (
    PasswordHandler,
    ProviderHandler,
    ProviderReturnHandler,
    SignInHandler,
    password_url,
    refusal,
)
from remotegpu_hub.starts import ExplainHandler, WaitHandler

STATIC = Path(__file__).parent / "static"
LOOK_AGAIN_S = 60.0
ADMIN_GROUP = "remotegpu-admins"
"""Members hold the custom scope of the admin pages."""


class RemoteGPUAuthenticator(Authenticator):
    """Checks user name and password at the RemoteGPU server, and carries role and customer into the hub."""

    server_url = Unicode(help="Address of the RemoteGPU server.").tag(config=True)
    hub_token = Unicode(help="The hub's service token.").tag(config=True)
    refresh_timeout = Float(2.0, help="Seconds a refresh may take before the last known answer stands.").tag(
        config=True
    )

    oidc_host: str = ""
    """Whom the login page offers to sign in with; empty: nobody."""
    _looked_at = float("-inf")

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
            (r"/login", SignInHandler),
            (r"/remotegpu/password", PasswordHandler),
            (r"/remotegpu/oidc", ProviderHandler),
            (r"/remotegpu/oidc/return", ProviderReturnHandler),
            (r"/remotegpu/explain", ExplainHandler),
            (r"/remotegpu/wait", WaitHandler),
            # Files of their own: a site may forbid inline scripts.
            (r"/remotegpu/static/(.*)", CacheControlStaticFilesHandler, {"path": str(STATIC)}),
        ]

    async def authenticate(self, handler: Any, data: dict[str, str]) -> dict[str, Any] | None:
        """The user, ``None`` for a wrong password, or a refusal that says what to do."""
        try:
            if isinstance(handler, ProviderReturnHandler):
                user = handler.proved
            else:
                user = await self.client().auth.verify(
                    username=data["username"],
                    password=data["password"],
                    client_address=handler.request.remote_ip,
                )
            identity = await self.client().on_behalf_of(user.username).me.get()
        except (errors.InvalidCredentials, errors.Invalid):
            return None
        except errors.RemoteGPUError as error:
            self.log.error("cannot sign in: %s", error)
            raise web.HTTPError(*refusal(error)) from error
        if user.password_change_required:
            handler.redirect(password_url(handler, user.username))
            raise web.Finish
        return auth_model(user, identity)

    async def look_for_provider(self) -> None:
        """Learn whether the server has an identity provider; in doubt it is as it was."""
        if time.monotonic() - self._looked_at < LOOK_AGAIN_S:
            return
        try:
            methods = await asyncio.wait_for(self.client().auth.methods(), self.refresh_timeout)
        except (errors.RemoteGPUError, TimeoutError) as error:
            self.log.warning("the RemoteGPU server does not tell how people sign in: %s", error)
            return
        self._looked_at = time.monotonic()
        self.oidc_host = urlsplit(methods.oidc_issuer or "").hostname or ""

    async def finish_oidc(self, *, state: str, code: str) -> User:
        """Who came back from the identity provider. The hub needs no session of that person."""
        made = await self.client().auth.finish_oidc(state=state, code=code)
        async with AsyncClient(url=self.server_url, token=made.secret) as client:
            await client.auth.logout()
        return made.user

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
