"""Which process runs the loops. The database decides, and fences the writes of a past leader."""

from __future__ import annotations

import secrets
import socket

from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession

LEASE_S = 9.0
RENEW_S = 3.0
"""A dead leader is replaced after at most ``LEASE_S + RENEW_S`` = 12 seconds."""
STALLED_S = 5.0
"""A leader that is paused inside a transaction loses it after this long: its lock on the row would keep
others from taking over when the lease has ended.
"""

_ACQUIRE = text(
    """
    INSERT INTO leadership AS current (name, holder, term, expires_at)
    VALUES (:name, :holder, 1, now() + make_interval(secs => :lease))
    ON CONFLICT (name) DO UPDATE SET
        holder = excluded.holder,
        term = current.term + CASE WHEN current.holder = excluded.holder THEN 0 ELSE 1 END,
        expires_at = excluded.expires_at
    WHERE current.holder = excluded.holder OR current.expires_at < now()
    RETURNING term
    """
)
_HELD = text(
    """
    SELECT set_config('idle_in_transaction_session_timeout', :stalled, true) FROM leadership
    WHERE name = :name AND holder = :holder AND term = :term AND expires_at > now()
    FOR SHARE
    """
)
_RESIGN = text(
    "UPDATE leadership SET expires_at = now() WHERE name = :name AND holder = :holder AND term = :term"
)


class LeadershipLost(Exception):
    """Another process leads now; what was begun must not be committed."""


class Candidate:
    """One process's claim to a leadership. ``term`` is set while it leads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder = f"{socket.gethostname()[:40]}-{secrets.token_hex(6)}"
        self.term: int | None = None

    async def acquire(self, db: AsyncSession) -> bool:
        """Become or stay leader. The caller commits."""
        self.term = await db.scalar(_ACQUIRE, {"name": self.name, "holder": self.holder, "lease": LEASE_S})
        return self.term is not None

    async def fence(self, db: AsyncSession) -> None:
        """Raise :class:`LeadershipLost` unless this process leads; no other can take over before the
        transaction ends, because the row is locked.
        """
        values = {
            "name": self.name,
            "holder": self.holder,
            "term": self.term,
            "stalled": f"{STALLED_S:g}s",
        }
        if self.term is None or await db.scalar(_HELD, values) is None:
            raise LeadershipLost(self.name)

    async def resign(self, db: AsyncSession) -> None:
        """Let the next process lead at once. The caller commits."""
        term, self.term = self.term, None
        await db.execute(
            _RESIGN.bindparams(bindparam("term")), {"name": self.name, "holder": self.holder, "term": term}
        )
