"""Pure: one line of an ``authorized_keys`` file -> a key that is safe to write into another one.

Nothing of the line is passed on as it came: type and key are decoded, checked and encoded anew, options are
refused and the comment is dropped.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from remotegpu.errors import Invalid

RSA_BITS = (2048, 16384)
_ECDSA_POINT_BYTES = {"nistp256": 65, "nistp384": 97, "nistp521": 133}
_TYPES = frozenset(
    {
        "ssh-rsa",
        "ssh-ed25519",
        *(f"ecdsa-sha2-{curve}" for curve in _ECDSA_POINT_BYTES),
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)


@dataclass(frozen=True)
class ParsedKey:
    """A key as it will be written."""

    key_type: str
    line: str
    fingerprint: str


def parse(line: str) -> ParsedKey:
    """Raises :class:`Invalid` with what is wrong."""
    words = line.strip().split()
    if len(line.strip().splitlines()) != 1:
        raise _wrong("One key is one line.")
    if "PRIVATE KEY" in line:
        raise _wrong("This is a private key. Keep it to yourself; register the file that ends in .pub.")
    if words[0] not in _TYPES:
        raise _wrong(_first_word(words))
    if len(words) < 2:
        raise _wrong("The key itself is missing after its type.")
    try:
        blob = base64.b64decode(words[1], validate=True)
        _check(words[0], _Reader(blob))
    except (binascii.Error, ValueError, IndexError) as error:
        raise _wrong(f"This is no valid {words[0]} key: {error}.") from None
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return ParsedKey(
        key_type=words[0],
        line=f"{words[0]} {base64.b64encode(blob).decode()}",
        fingerprint=f"SHA256:{digest}",
    )


def _first_word(words: list[str]) -> str:
    if any(word in _TYPES for word in words):
        return "Options before the key are not allowed; the line starts with the key's type."
    if "-cert-" in words[0]:
        return "Certificates are not accepted; register the plain public key."
    if words[0] == "ssh-dss":
        return "DSA keys are too weak."
    return f"{words[0][:40]!r} is no key type that is accepted ({', '.join(sorted(_TYPES))})."


def _wrong(what: str) -> Invalid:
    return Invalid(
        f"public_key: {what}",
        hint="It looks like `ssh-ed25519 AAAA…`; `ssh-keygen -t ed25519` makes one.",
        data={"errors": [{"field": "public_key", "message": what}]},
    )


class _Reader:
    """The fields of a key's binary form, each with its length before it."""

    def __init__(self, blob: bytes) -> None:
        self._left = blob

    def field(self) -> bytes:
        size = int.from_bytes(self._left[:4])
        if len(self._left) < 4 or len(self._left) < 4 + size:
            raise ValueError("it is cut short")
        found, self._left = self._left[4 : 4 + size], self._left[4 + size :]
        return found

    def end(self) -> None:
        if self._left:
            raise ValueError("something follows the key")


def _check(key_type: str, reader: _Reader) -> None:
    if reader.field() != key_type.encode():
        raise ValueError("the type inside the key is another one")
    if key_type == "ssh-rsa":
        _check_rsa(reader)
    elif "ed25519" in key_type:
        if len(reader.field()) != 32:
            raise ValueError("an Ed25519 key has 32 bytes")
    else:
        _check_ecdsa(key_type, reader)
    if key_type.startswith("sk-") and not reader.field():
        raise ValueError("a security key names its application")
    reader.end()


def _check_rsa(reader: _Reader) -> None:
    exponent, modulus = int.from_bytes(reader.field()), int.from_bytes(reader.field())
    least, most = RSA_BITS
    if not least <= modulus.bit_length() <= most:
        raise ValueError(f"{modulus.bit_length()} bits; {least} to {most} are accepted")
    if exponent < 3 or exponent % 2 == 0 or modulus % 2 == 0:
        raise ValueError("its numbers make no RSA key")


def _check_ecdsa(key_type: str, reader: _Reader) -> None:
    curve = reader.field().decode("ascii")
    if curve not in key_type or curve not in _ECDSA_POINT_BYTES:
        raise ValueError("the curve inside the key is another one")
    point = reader.field()
    if len(point) != _ECDSA_POINT_BYTES[curve] or point[0] != 4:
        raise ValueError("its point has the wrong form")
