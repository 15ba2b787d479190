"""Ways into the hub beside the right password: a first password of one's own, and the identity provider."""

from __future__ import annotations

import json
from typing import Any

from jupyterhub.handlers import BaseHandler
from jupyterhub.handlers.login import LoginHandler
from tornado import web
from tornado.httputil import url_concat

from remotegpu import AsyncClient, errors
from remotegpu.types.identity import LEAST_PASSWORD, LONGEST_PASSWORD, User

PASSWORD_PATH = "remotegpu/password"  # noqa: S105
_COOKIE = "remotegpu-oidc"
_COOKIE_DAYS = 10 / 1440
"""As long as the server knows the state."""


class SignInHandler(LoginHandler):
    """The hub's login page, with a button where the server has an identity provider."""

    async def get(self) -> None:
        await self.authenticator.look_for_provider()
        await super().get()


class PasswordHandler(BaseHandler):
    """`/hub/remotegpu/password`: a new password, for a one-time password too; ends signed in."""

    async def get(self) -> None:
        await self._show()

    async def post(self) -> None:
        username = self.get_body_argument("username", "")
        current = self.get_body_argument("password", "", strip=False)
        new = self.get_body_argument("new_password", "", strip=False)
        if wrong := _wrong(current, new, again=self.get_body_argument("new_password_again", "", strip=False)):
            await self._show(error=wrong, status=400)
            return
        address = self.request.remote_ip
        client: AsyncClient = self.authenticator.client()
        try:
            user = await client.auth.verify(username=username, password=current, client_address=address)
            await client.on_behalf_of(user.username).me.change_password(
                current_password=current, new_password=new, client_address=address
            )
        except errors.RemoteGPUError as error:
            status, words = refusal(error)
            await self._show(error=words, status=status)
            return
        signed_in = await self.login_user({"username": user.username, "password": new})
        self.redirect(self.get_next_url(signed_in))

    async def _show(self, *, error: str = "", status: int = 200) -> None:
        self.set_status(status)
        page = self.render_template(
            "remotegpu-password.html",
            error=error,
            username=self.get_argument("username", ""),
            one_time=bool(self.get_argument("one_time", "")),
            least=LEAST_PASSWORD,
            next_url=self.get_argument("next", ""),
            xsrf=self.xsrf_token.decode("ascii"),
        )
        self.finish(await page)


class ProviderHandler(BaseHandler):
    """`GET /hub/remotegpu/oidc`: to the identity provider, with the state in a cookie of this browser."""

    async def get(self) -> None:
        try:
            started = await self.authenticator.client().auth.start_oidc()
        except errors.RemoteGPUError as error:
            raise web.HTTPError(*refusal(error)) from error
        kept = {"state": started.state, "next": self.get_argument("next", "")}
        self.set_secure_cookie(
            _COOKIE,
            json.dumps(kept),
            expires_days=_COOKIE_DAYS,
            path=f"{self.hub.base_url}remotegpu/",
            httponly=True,
            samesite="Lax",
            secure=self.request.protocol == "https",
        )
        self.redirect(started.authorization_url)


class ProviderReturnHandler(BaseHandler):
    """`GET /hub/remotegpu/oidc/return`: back from the identity provider; ends signed in at the hub."""

    proved: User
    """Who it is, as the server has it from the provider; the authenticator reads it."""

    async def get(self) -> None:
        cookie = self.get_secure_cookie(_COOKIE, max_age_days=_COOKIE_DAYS)
        kept = json.loads(cookie) if cookie else {}
        self.clear_cookie(_COOKIE, path=f"{self.hub.base_url}remotegpu/")
        state, code = self.get_argument("state", ""), self.get_argument("code", "")
        if not kept or state != kept["state"]:
            raise web.HTTPError(
                403, "This sign-in was not started in this browser, or is too old. Try again."
            )
        if not code:
            raise web.HTTPError(403, "The identity provider did not let you in. Try again.")
        try:
            self.proved = await self.authenticator.finish_oidc(state=state, code=code)
        except errors.RemoteGPUError as error:
            raise web.HTTPError(*refusal(error)) from error
        user = await self.login_user({"username": self.proved.username})
        self.request.arguments["next"] = [kept["next"].encode()]  # where get_next_url looks, and checks it
        self.redirect(self.get_next_url(user))


def _wrong(current: str, new: str, *, again: str) -> str:
    """What the server would refuse in words for programs; empty: nothing."""
    if new != again:
        return "The two new passwords differ."
    if not LEAST_PASSWORD <= len(new) <= LONGEST_PASSWORD:
        return f"The new password needs {LEAST_PASSWORD} to {LONGEST_PASSWORD} characters."
    return "The new password must not be the present one." if new == current else ""


def password_url(handler: Any, username: str) -> str:
    """The page on which a one-time password is changed, and which then goes where the login would."""
    known = {"username": username, "one_time": "1", "next": handler.get_argument("next", "")}
    return str(url_concat(f"{handler.hub.base_url}{PASSWORD_PATH}", known))


def refusal(error: errors.RemoteGPUError) -> tuple[int, str]:
    """Status and words for a person who could not be let in."""
    match error:
        case errors.InvalidCredentials():
            return 403, "Invalid username or password."
        case errors.RateLimited():
            wait = f" Try again in {error.retry_after_s:.0f} seconds." if error.retry_after_s else ""
            return 429, f"Too many failed sign-ins.{wait}"
        case errors.AccountSuspended():
            return 403, "This account is suspended. Ask your administrator."
        case errors.Invalid() | errors.Conflict() | errors.Forbidden() | errors.NotFound():
            return 403, str(error)
    return 503, (
        "Signing in is not possible at the moment: the RemoteGPU server does not answer. "
        "Try again in a minute."
    )
