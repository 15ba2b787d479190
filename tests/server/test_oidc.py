"""Signing in at a real identity provider: it runs beside the test and signs with a key of its own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import uvicorn
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors

CLIENT, SECRET, BACK = "remotegpu", "client-secret", "https://hub.example.org/oidc"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass
class Provider:
    """Takes codes that ``authorize`` made, checks PKCE and the client's secret, answers a signed token."""

    url: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    signing_key: rsa.RSAPrivateKey | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def authorize(self, url: str) -> tuple[str, str]:
        """What a browser would bring back: state and code."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (asked["client_id"], asked["redirect_uri"]) == (CLIENT, BACK)
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return asked["state"], code

    def token(self, nonce: str) -> str:
        head = _b64(json.dumps({"alg": "RS256", "kid": "k1"}).encode())
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "exp": now + 60, "iat": now, "nonce": nonce, "sub": "s-1"}
        body = _b64(json.dumps(claims | self.claims).encode())
        signed = (self.signing_key or self.key).sign(
            f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        return f"{head}.{body}.{_b64(signed)}"

    def app(self) -> Starlette:
        async def discovery(_request: Request) -> JSONResponse:
            return JSONResponse(
                {
                    "issuer": self.url,
                    "authorization_endpoint": f"{self.url}/authorize",
                    "token_endpoint": f"{self.url}/token",
                    "jwks_uri": f"{self.url}/keys",
                }
            )

        async def keys(_request: Request) -> JSONResponse:
            n = self.key.public_key().public_numbers().n.to_bytes(256, "big")
            return JSONResponse({"keys": [{"kty": "RSA", "kid": "k1", "n": _b64(n), "e": "AQAB"}]})

        async def token(request: Request) -> JSONResponse:
            form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
            asked = self.codes.pop(form["code"], {"code_challenge": "", "nonce": ""})
            challenge = _b64(hashlib.sha256(form["code_verifier"].encode()).digest())
            given = (asked["code_challenge"], form["client_secret"], form["redirect_uri"])
            if given != (challenge, SECRET, BACK):
                return JSONResponse({"error": "invalid_grant"}, status_code=400)
            return JSONResponse({"id_token": self.token(asked["nonce"]), "token_type": "Bearer"})

        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", discovery),
                Route("/keys", keys),
                Route("/token", token, methods=["POST"]),
            ]
        )


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    server = uvicorn.Server(uvicorn.Config(made.app(), port=0, log_config=None, lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn tells nobody
        await asyncio.sleep(0.01)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    made.claims = {"preferred_username": "Ada", "groups": ["lab"], "email": "ada@example.org"}
    yield made
    server.should_exit = True
    await task


@pytest.fixture
def settings(database_url: str, provider: Provider) -> Settings:
    return Settings(
        database_url=database_url,
        secret_key=Fernet.generate_key().decode(),
        oidc_issuer=provider.url,
        oidc_client_id=CLIENT,
        oidc_client_secret=SECRET,
        oidc_redirect_uri=BACK,
        oidc_customers={"lab": "physics"},
        oidc_admin_group="admins",
    )


async def _sign_in(client: httpx.AsyncClient, provider: Provider) -> httpx.Response:
    began = (await client.post("/v1/auth/oidc:start")).json()
    state, code = provider.authorize(began["authorization_url"])
    assert state == began["state"]
    return await client.post("/v1/auth/oidc:finish", json={"state": state, "code": code})


async def test_first_sign_in_makes_the_account_and_the_next_finds_it_by_subject(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    first = await _sign_in(client, provider)
    assert first.status_code == 201, first.text
    user = first.json()["user"]
    assert (user["username"], user["customer_name"], user["role"]) == ("ada", "physics", "member")
    assert user["email"] is None, "the provider did not say that it was verified"
    headers = {"Authorization": f"Bearer {first.json()['secret']}"}
    assert (await client.get("/v1/me", headers=headers)).status_code == 200
    provider.claims["preferred_username"] = "renamed"
    assert (await _sign_in(client, provider)).json()["user"]["id"] == user["id"]


async def test_name_in_use_is_never_taken_over(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.user("ada", customer="physics", role="owner")
    refused = await _sign_in(client, provider)
    assert (refused.status_code, refused.json()["error"]) == (409, "name_taken")


async def test_groups_decide_who_comes_in_and_who_is_admin(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    provider.claims["groups"] = ["elsewhere"]
    assert (await _sign_in(client, provider)).status_code == 403
    provider.claims["groups"] = ["lab", "admins"]
    assert (await _sign_in(client, provider)).json()["user"]["role"] == "admin"


async def test_suspended_user_stays_out(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    await _sign_in(client, provider)
    admin = await actors.admin()
    await client.post("/v1/users/ada:suspend", headers=admin.headers)
    assert (await _sign_in(client, provider)).json()["error"] == "account_suspended"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "somebody-else"},
        {"aud": [CLIENT, "somebody-else"]},
        {"iss": "https://evil.example.org"},
        {"exp": 1},
        {"nonce": "another"},
        {"sub": ""},
    ],
)
async def test_token_that_is_not_for_this_sign_in_is_refused(
    client: httpx.AsyncClient, provider: Provider, actors: Actors, claims: dict[str, Any]
) -> None:
    await actors.customer("physics")
    provider.claims |= claims
    refused = await _sign_in(client, provider)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_credentials")


async def test_token_signed_by_somebody_else_is_refused(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    provider.signing_key = rsa.generate_private_key(65537, 2048)
    assert (await _sign_in(client, provider)).json()["error"] == "invalid_credentials"


async def test_state_works_once_and_only_with_its_own_code(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    began = (await client.post("/v1/auth/oidc:start")).json()
    state, code = provider.authorize(began["authorization_url"])
    other = (await client.post("/v1/auth/oidc:start")).json()
    swapped = await client.post("/v1/auth/oidc:finish", json={"state": other["state"], "code": code})
    assert swapped.json()["error"] == "invalid_credentials"
    again = await client.post("/v1/auth/oidc:finish", json={"state": other["state"], "code": code})
    assert again.status_code == 401
    unknown = await client.post("/v1/auth/oidc:finish", json={"state": "s" * 43, "code": code})
    assert unknown.status_code == 401
    assert state != other["state"]
