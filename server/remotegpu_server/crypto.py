"""Encryption of what must be read back (``secret_env``, stored answers). Tokens and passwords are hashed."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken


class Vault:
    """Encrypts with the server's key; every box is authenticated."""

    def __init__(self, secret_key: str) -> None:
        self._fernet = Fernet(secret_key)

    def seal(self, plain: bytes) -> bytes:
        return self._fernet.encrypt(plain)

    def open(self, sealed: bytes) -> bytes | None:
        """The plain bytes, or None when they were sealed with another key (it was lost or replaced)."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            return None
