"""Limits on guessing: failed sign-ins count per account name and per client address, in the database."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import RateLimited
from remotegpu_server import observability
from remotegpu_server.db import tables
from remotegpu_server.settings import Settings


def subjects_of(username: str, address: str | None) -> tuple[str, ...]:
    """What a sign-in counts against. Names are hashed: people type passwords into the name field."""
    account = f"user:{hashlib.sha256(username.encode()).hexdigest()}"
    return (account, f"address:{address}") if address else (account,)


async def count_attempt(db: AsyncSession, settings: Settings, *, username: str, address: str | None) -> None:
    """Count a sign-in as failed before the password is looked at, so that parallel guesses count too.

    Raises ``RateLimited`` when an account or an address had its share, whether the account exists or not.
    The caller commits; :func:`forgive` takes the count back when the password was right.
    """
    allowed = (settings.login_failures_per_account, settings.login_failures_per_address)
    failure = tables.LoginFailure
    window = timedelta(seconds=settings.login_window_s)
    for subject, limit in zip(subjects_of(username, address), allowed, strict=False):
        await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(subject, 72))))
        count, oldest_age = (
            await db.execute(
                select(func.count(), func.extract("epoch", func.now() - func.min(failure.at))).where(
                    failure.subject == subject, failure.at > func.now() - window
                )
            )
        ).one()
        if count >= limit:
            observability.LOGIN_FAILURES.labels("rate_limited").inc()
            raise RateLimited(
                "Too many failed sign-ins.",
                hint="Wait a little, or ask an admin for a new password.",
                retry_after_s=max(1.0, settings.login_window_s - float(oldest_age)),
            )
    await db.execute(insert(failure), [{"subject": subject} for subject in subjects_of(username, address)])


async def forgive(db: AsyncSession, *, username: str, address: str | None) -> None:
    """The password was right: forget the account's failures, and this attempt of the address."""
    failure = tables.LoginFailure
    account, *others = subjects_of(username, address)
    await db.execute(delete(failure).where(failure.subject == account))
    for subject in others:
        newest = select(func.max(failure.id)).where(failure.subject == subject).scalar_subquery()
        await db.execute(delete(failure).where(failure.id == newest))
