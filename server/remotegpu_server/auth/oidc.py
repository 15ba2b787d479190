"""Signing in at an OpenID Connect provider: code flow with PKCE, state and nonce. Off unless configured.

Who somebody is, is the pair (issuer, subject): names and addresses at the provider may change hands. What
takes time (discovery, token exchange) happens between transactions.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import AccountSuspended, Forbidden, InvalidCredentials, NotFound, Unavailable
from remotegpu.types.identity import OidcFinish, OidcStart
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import SYSTEM
from remotegpu_server.crypto import Vault
from remotegpu_server.db import tables
from remotegpu_server.settings import Settings
from remotegpu_server.users import service as users
from remotegpu_server.users.queries import UserWithCustomer, users_with_customers

_LIFETIME = timedelta(minutes=10)
_TIMEOUT_S = 10.0
_LEEWAY_S = 60


async def start(sessions: async_sessionmaker[AsyncSession], settings: Settings, vault: Vault) -> OidcStart:
    """Where the browser goes. Raises ``NotFound`` where no provider is configured."""
    provider = await _discover(settings)
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    async with sessions() as db:
        await db.execute(
            insert(tables.OidcLogin).values(
                state_hash=_sha256(state), nonce=nonce, verifier=vault.seal(verifier.encode())
            )
        )
        await db.commit()
    query = {
        "response_type": "code",
        "client_id": settings.oidc_client_id,
        "redirect_uri": settings.oidc_redirect_uri,
        "scope": "openid profile email",
        "state": state,
        "nonce": nonce,
        "code_challenge": _b64(_sha256(verifier)),
        "code_challenge_method": "S256",
    }
    return OidcStart(
        authorization_url=f"{provider['authorization_endpoint']}?{urlencode(query)}", state=state
    )


async def finish(
    sessions: async_sessionmaker[AsyncSession], settings: Settings, vault: Vault, body: OidcFinish
) -> UserWithCustomer:
    """The user who comes back, made at the first time. A state works once, for ten minutes."""
    provider = await _discover(settings)
    nonce, verifier = await _take(sessions, vault, body.state)
    claims = await _exchange(settings, provider, code=body.code, verifier=verifier)
    _check_claims(settings, claims, nonce)
    async with sessions() as db:
        found = await _user_of(db, settings, claims)
        await db.commit()
    audit.note_detached(account=found.user.username, issuer=settings.oidc_issuer)
    if found.user.status != "active" or found.customer.status != "active":
        raise AccountSuspended("The account is suspended.")
    return found


async def _discover(settings: Settings) -> dict[str, Any]:
    if settings.oidc_issuer is None:
        raise NotFound("No identity provider is configured.", hint="Sign in with name and password.")
    issuer = settings.oidc_issuer.rstrip("/")
    found = await _fetch("GET", f"{issuer}/.well-known/openid-configuration")
    if str(found.get("issuer", "")).rstrip("/") != issuer:
        raise Unavailable("The identity provider says that it is another one.")
    return found


async def _take(sessions: async_sessionmaker[AsyncSession], vault: Vault, state: str) -> tuple[str, str]:
    row = tables.OidcLogin
    async with sessions() as db:
        taken = (
            await db.execute(
                delete(row)
                .where(row.state_hash == _sha256(state))
                .returning(row.nonce, row.verifier, row.created_at > func.now() - _LIFETIME)
            )
        ).one_or_none()
        await db.commit()
    verifier = vault.open(taken[1]) if taken is not None and taken[2] else None
    if taken is None or verifier is None:
        raise InvalidCredentials("This sign-in was not started here, was used, or is too old.")
    return taken[0], verifier.decode()


async def _exchange(
    settings: Settings, provider: dict[str, Any], *, code: str, verifier: str
) -> dict[str, Any]:
    answer = await _fetch(
        "POST",
        str(provider["token_endpoint"]),
        data={
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": settings.oidc_redirect_uri,
            "client_id": settings.oidc_client_id,
            "client_secret": settings.oidc_client_secret,
            "code_verifier": verifier,
        },
    )
    keys = await _fetch("GET", str(provider["jwks_uri"]))
    return verified(str(answer.get("id_token", "")), keys)


async def _fetch(method: str, url: str, *, data: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            answer = await client.request(method, url, data=data)
        if method == "POST" and answer.is_client_error:
            raise InvalidCredentials("The identity provider refused this sign-in.")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable("The identity provider does not answer.") from error
    return found


def verified(token: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The claims of a token that one of the keys signed with RS256; nothing else is accepted."""
    try:
        head, body, signature = token.split(".")
        header = json.loads(_unb64(head))
        key = next(
            one for one in keys["keys"] if one.get("kid") == header.get("kid") and one.get("kty") == "RSA"
        )
        if header["alg"] != "RS256":
            raise ValueError("not RS256")
        numbers = rsa.RSAPublicNumbers(
            e=int.from_bytes(_unb64(key["e"]), "big"), n=int.from_bytes(_unb64(key["n"]), "big")
        )
        numbers.public_key().verify(
            _unb64(signature), f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        claims: dict[str, Any] = json.loads(_unb64(body))
    except (ValueError, KeyError, TypeError, StopIteration, InvalidSignature) as error:
        raise InvalidCredentials("The identity provider's token is not signed by it.") from error
    return claims


def _check_claims(settings: Settings, claims: dict[str, Any], nonce: str) -> None:
    audience = claims.get("aud")
    listed = audience if isinstance(audience, list) else [audience]
    fits = (
        str(claims.get("iss", "")).rstrip("/") == (settings.oidc_issuer or "").rstrip("/"),
        settings.oidc_client_id in listed,
        len(listed) == 1 or claims.get("azp") == settings.oidc_client_id,
        float(claims.get("exp", 0)) > time.time() - _LEEWAY_S,
        hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()),
        bool(claims.get("sub")),
    )
    if not all(fits):
        raise InvalidCredentials("The identity provider's token is not for this sign-in.")


async def _user_of(db: AsyncSession, settings: Settings, claims: dict[str, Any]) -> UserWithCustomer:
    row = tables.User
    ours = users_with_customers().where(
        row.oidc_issuer == settings.oidc_issuer, row.oidc_subject == str(claims["sub"])
    )
    found = (
        await db.execute(ours.with_for_update(of=row).execution_options(populate_existing=True))
    ).one_or_none()
    if found is None:
        await _make(db, settings, claims)
        found = (await db.execute(ours)).one()
    return UserWithCustomer(*found)


async def _make(db: AsyncSession, settings: Settings, claims: dict[str, Any]) -> None:
    """A new account in the customer that the groups map to. A name in use is refused, never taken over."""
    groups = claims.get("groups") or []
    name = next((settings.oidc_customers[one] for one in groups if one in settings.oidc_customers), None)
    customer = await db.scalar(
        select(tables.Customer).where(tables.Customer.name == (name or settings.oidc_customer))
    )
    if customer is None:
        raise Forbidden("None of your groups may use this platform.", hint="Ask your administrator.")
    admin = settings.oidc_admin_group is not None and settings.oidc_admin_group in groups
    username = re.sub(r"[^a-z0-9._@-]", "-", str(claims.get("preferred_username") or claims["sub"]).lower())
    profile = {
        "username": username.lstrip("._@-")[:63],
        "display_name": str(claims.get("name", ""))[:1024],
        "email": claims.get("email") if claims.get("email_verified") else None,
        "role": "admin" if admin else "member",
    }
    user = await users.insert_user(
        db,
        profile,
        customer_id=customer.id,
        password_hash="",  # no password opens it
        oidc_issuer=settings.oidc_issuer,
        oidc_subject=str(claims["sub"]),
    )
    await users.record(db, SYSTEM, user, "user.created", f"{user.username} came from the identity provider.")


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
