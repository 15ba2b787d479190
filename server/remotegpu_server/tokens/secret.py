"""The text of a token: ``rgu_<id>_<43 characters>``. The id finds the row, the rest is 256 random bits."""

from __future__ import annotations

import hashlib
import re
import secrets

from remotegpu.types.identity import TokenKind

PREFIXES = {
    TokenKind.USER: "rgu",
    TokenKind.SERVICE: "rgs",
    TokenKind.AGENT: "rga",
    TokenKind.WORKLOAD: "rgw",
    TokenKind.ENROLLMENT: "rge",
}
PATTERN = re.compile(r"rg[usawep]_[a-z0-9]{12}_[A-Za-z0-9_-]{43}")
"""Finds secrets in any text, for redaction; ``rgp_`` is a link to a new password, and no token."""

_KIND_OF = {prefix: kind for kind, prefix in PREFIXES.items()}
_ID_PREFIX = "tok-"


def make_secret(kind: TokenKind, token_id: str) -> str:
    """A new secret for the row ``token_id`` (``tok-<12 characters>``)."""
    return f"{PREFIXES[kind]}_{token_id.removeprefix(_ID_PREFIX)}_{secrets.token_urlsafe(32)}"


def token_id_of(secret: str) -> tuple[TokenKind, str] | None:
    """Kind and row id that a secret names, or None when it is no token at all."""
    if PATTERN.fullmatch(secret) is None:
        return None
    prefix, accessor, _ = secret.split("_", 2)
    if prefix not in _KIND_OF:
        return None
    return _KIND_OF[prefix], _ID_PREFIX + accessor


def digest(secret: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).digest()
