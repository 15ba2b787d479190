"""Password hashes: argon2id in threads, few at a time, because one takes 64 MiB and a fifth of a second."""

from __future__ import annotations

import asyncio
import secrets

import argon2
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_PARALLEL = 2
_hasher = PasswordHasher()
_cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
_slots = asyncio.Semaphore(_PARALLEL)
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"

_NOBODY = _hasher.hash(secrets.token_urlsafe(32))
"""Verified against for names that do not exist, so that they take as long as names that do."""


async def hash_password(password: str) -> str:
    """The text to store."""
    async with _slots:
        return await asyncio.to_thread(_hasher.hash, password)


async def verify_password(stored: str | None, password: str) -> bool:
    """Whether ``password`` is the one; ``stored=None`` (no such user) costs the same and is False."""
    async with _slots:
        matches = await asyncio.to_thread(_verify, stored or _NOBODY, password)
    return matches and stored is not None


def make_one_time_password() -> str:
    """20 characters of 32: 100 random bits, easy to read aloud."""
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(20))
    return "-".join(letters[start : start + 5] for start in range(0, 20, 5))


def cheap_hash(password: str) -> str:
    """A weak hash, for tests that make many users."""
    return _cheap.hash(password)


def _verify(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError, argon2.exceptions.Argon2Error):
        return False
