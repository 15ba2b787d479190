"""SSH keys: what opens an environment."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from remotegpu.types.wire import UtcTime, Wire


class SshKeyCreate(Wire):
    """A public key to register."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]*$")]
    public_key: Annotated[str, StringConstraints(min_length=1, max_length=16384)]
    """One line as in ``authorized_keys``: rsa from 2048 bits, ed25519, ecdsa, and their ``sk-`` forms. No
    options; the comment is dropped."""


class SshKey(Wire):
    """A registered key."""

    id: str
    name: str
    key_type: str
    public_key: str
    """Type and key."""
    fingerprint: str
    """``SHA256:…`` as ``ssh-keygen -l`` prints it; unique among the user's."""
    created_at: UtcTime
