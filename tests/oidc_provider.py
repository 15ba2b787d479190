"""An OpenID Connect provider that runs beside a test and signs with a key of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route

CLIENT, SECRET = "remotegpu", "client-secret"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass
class Provider:
    """Takes codes that ``authorize`` made, checks PKCE and the client's secret, answers a signed token."""

    back: str
    """The redirect URI that it knows."""
    url: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    signing_key: rsa.RSAPrivateKey | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def authorize(self, url: str) -> tuple[str, str]:
        """What a browser would bring back: state and code."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (asked["client_id"], asked["redirect_uri"]) == (CLIENT, self.back)
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

        async def authorize(request: Request) -> RedirectResponse:
            """Somebody is signed in here already, and agrees."""
            state, code = self.authorize(str(request.url))
            return RedirectResponse(f"{self.back}?{urlencode({'state': state, 'code': code})}")

        async def keys(_request: Request) -> JSONResponse:
            n = self.key.public_key().public_numbers().n.to_bytes(256, "big")
            return JSONResponse({"keys": [{"kty": "RSA", "kid": "k1", "n": _b64(n), "e": "AQAB"}]})

        async def token(request: Request) -> JSONResponse:
            form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
            asked = self.codes.pop(form["code"], {"code_challenge": "", "nonce": ""})
            challenge = _b64(hashlib.sha256(form["code_verifier"].encode()).digest())
            given = (asked["code_challenge"], form["client_secret"], form["redirect_uri"])
            if given != (challenge, SECRET, self.back):
                return JSONResponse({"error": "invalid_grant"}, status_code=400)
            return JSONResponse({"id_token": self.token(asked["nonce"]), "token_type": "Bearer"})

        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", discovery),
                Route("/authorize", authorize),
                Route("/keys", keys),
                Route("/token", token, methods=["POST"]),
            ]
        )
