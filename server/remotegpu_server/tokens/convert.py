"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.identity import Scope, Token, TokenKind
from remotegpu_server.db import tables


def to_wire(row: tables.Token) -> Token:
    """A token as answered: never with its secret or the secret's hash."""
    return Token(
        id=row.id,
        kind=TokenKind(row.kind),
        name=row.name,
        scopes=[Scope(scope) for scope in row.scopes],
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
