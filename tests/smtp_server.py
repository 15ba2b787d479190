"""A real SMTP server in a process of its own: ``python smtp_server.py FOLDER [PORT]``.

Mails land in ``FOLDER/mails``. With ``FOLDER/cert.pem`` and ``key.pem`` it offers STARTTLS and, over
TLS only, asks for the password ``hunter2hunter2`` of ``mailer``. It takes nothing for ``nobody@…``
and prints its port.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class SmtpServer:
    """The process, its folder and what it received. ``stop`` and ``start`` as an outage does."""

    def __init__(self, folder: Path, *, tls: bool = True) -> None:
        self.folder = folder
        self.port = 0
        self.tls = tls
        (folder / "mails").mkdir(parents=True)
        if tls:
            _certify(folder)
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        user = "mailer:hunter2hunter2@" if self.tls else ""
        return f"smtp://{user}127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", __file__, str(self.folder), str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def mails(self) -> list[Message]:
        found = sorted((self.folder / "mails").glob("*.eml"))
        return [message_from_bytes(one.read_bytes()) for one in found]


def _certify(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def main(folder: Path, port: int) -> None:
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult

    class Keeper:
        async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _o: Any) -> str:  # noqa: N802
            if address.startswith("nobody@"):
                return "550 no such mailbox"
            envelope.rcpt_tos.append(address)
            return "250 ok"

        async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
            number = len(list((folder / "mails").iterdir()))
            draft = folder / "mails" / f"{number:06}.part"
            draft.write_bytes(envelope.content)
            os.rename(draft, draft.with_suffix(".eml"))
            return "250 taken"

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"mailer", b"hunter2hunter2"))

    options: dict[str, Any] = {}
    if (folder / "cert.pem").exists():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        options = {
            "tls_context": context,
            "require_starttls": True,
            "authenticator": authenticate,
            "auth_required": True,
        }
    controller = Controller(Keeper(), hostname="127.0.0.1", port=port or _free(), **options)
    controller.start()
    print(controller.port, flush=True)
    threading.Event().wait()


def _free() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
