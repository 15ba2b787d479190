"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.ssh_keys import SshKey
from remotegpu_server.db import tables


def to_wire(row: tables.SshKey) -> SshKey:
    """A registered key."""
    return SshKey(
        id=row.id,
        name=row.name,
        key_type=row.key_type,
        public_key=row.public_key,
        fingerprint=row.fingerprint,
        created_at=row.created_at,
    )
