"""Sign in, sign out, who am I."""

from __future__ import annotations

from starlette.requests import Request

from remotegpu.types.identity import (
    Credentials,
    Identity,
    Login,
    OidcFinish,
    OidcStart,
    PasswordChange,
    PasswordReset,
    PasswordResetLink,
    PasswordResetRequest,
    ProfileUpdate,
    SignInMethods,
    TokenCreated,
    User,
)
from remotegpu_server.auth import oidc, resets, service
from remotegpu_server.auth.client_address import client_address
from remotegpu_server.authz import Action, require
from remotegpu_server.deps import Caller, Db, DetachedCaller, Sessions, SettingsDep, VaultDep
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.users import service as users

router = api_router("identity")


@router.post("/v1/auth/login", status_code=201, summary="Sign in with a password")
async def login(request: Request, body: Login, sessions: Sessions, settings: SettingsDep) -> TokenCreated:
    """Answers a session token. Says the same for a wrong password and an unknown name."""
    return await service.login(sessions, settings, body, address=client_address(request, settings))


@router.post("/v1/auth/logout", status_code=204, summary="End this session")
async def logout(db: Db, caller: Caller) -> None:
    """The token of this request stops working at once."""
    await service.logout(db, caller)


@router.post("/v1/auth/verify", summary="Check a password for a sign-in page")
async def verify(
    request: Request, body: Credentials, sessions: Sessions, settings: SettingsDep, caller: DetachedCaller
) -> User:
    """For the hub: makes no token. `X-Forwarded-For` names the client whose failures count."""
    require(caller, Action.AUTH_VERIFY)
    address = client_address(request, settings, forwarder_is_trusted=True)
    return await service.verify(sessions, settings, body, address=address)


@router.get("/v1/auth/methods", summary="How people sign in")
async def sign_in_methods(settings: SettingsDep) -> SignInMethods:
    """For sign-in pages: whether there is an identity provider."""
    return SignInMethods(oidc_issuer=settings.oidc_issuer)


@router.post("/v1/auth/oidc:start", summary="Begin a sign-in at the identity provider")
async def start_oidc(sessions: Sessions, settings: SettingsDep, vault: VaultDep) -> OidcStart:
    """Answers where the browser goes. 404 where no provider is configured."""
    return await oidc.start(sessions, settings, vault)


@router.post("/v1/auth/oidc:finish", status_code=201, summary="End a sign-in at the identity provider")
async def finish_oidc(
    body: OidcFinish, sessions: Sessions, settings: SettingsDep, vault: VaultDep
) -> TokenCreated:
    """Answers a session token. A state works once, for ten minutes."""
    found = await oidc.finish(sessions, settings, vault, body)
    return await service.open_session(sessions, found, expires_in_s=service.SESSION_S)


@router.post("/v1/auth/password-reset", status_code=204, summary="Ask for a new password")
async def request_password_reset(
    request: Request, body: PasswordResetRequest, sessions: Sessions, settings: SettingsDep, vault: VaultDep
) -> None:
    """Answers the same for everybody, known or not. A link goes to the account's e-mail address, where the
    server sends mail; otherwise an admin makes one.
    """
    address = client_address(request, settings)
    await resets.request(sessions, settings, vault, reference=body.user, address=address)


@router.post("/v1/auth/password-reset:finish", status_code=204, summary="Set a new password with a link")
async def finish_password_reset(
    request: Request, body: PasswordReset, sessions: Sessions, settings: SettingsDep
) -> None:
    """The secret works once, within 30 minutes. Every session of the user ends."""
    await resets.finish(sessions, settings, body, address=client_address(request, settings))


@router.post(
    "/v1/users/{user}/password-resets",
    status_code=201,
    summary="Make a link to a new password",
    dependencies=[IDEMPOTENT],
)
async def create_password_reset(
    user: str, db: Db, caller: Caller, settings: SettingsDep
) -> PasswordResetLink:
    """For somebody who gets no mail; shown this once, valid for 30 minutes."""
    return await resets.make_link(db, caller, settings, reference=user)


@router.get("/v1/me", summary="Who the caller is")
async def me(db: Db, caller: Caller) -> Identity:
    """The user, the token, and the environment or host that the token is bound to."""
    return await service.identity(db, caller)


@router.patch("/v1/me", summary="Change the own profile")
async def update_profile(body: ProfileUpdate, db: Db, caller: Caller) -> User:
    """Fields left out stay as they are."""
    return await users.update_profile(db, caller, body)


@router.post("/v1/me/password", status_code=204, summary="Change the own password")
async def change_password(
    request: Request,
    body: PasswordChange,
    sessions: Sessions,
    settings: SettingsDep,
    caller: DetachedCaller,
) -> None:
    """Ends every other session of the user."""
    await service.change_password(
        sessions,
        settings,
        caller,
        current=body.current_password.get_secret_value(),
        new=body.new_password.get_secret_value(),
        address=client_address(request, settings, forwarder_is_trusted=caller.is_service),
    )
