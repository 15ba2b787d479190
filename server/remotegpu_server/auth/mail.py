"""Sending one mail over SMTP. Blocking, so it runs in a thread."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

_TIMEOUT_S = 10.0


def send(smtp_url: str, *, sender: str, to: str, subject: str, text: str) -> None:
    """``smtp://[user:password@]host[:port]`` upgrades to TLS where the server offers it; ``smtps://`` is TLS
    from the start. Raises ``OSError`` and ``smtplib.SMTPException``.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message.set_content(text)
    with _connect(smtp_url) as server:
        server.send_message(message)


def _connect(smtp_url: str) -> smtplib.SMTP:
    parts = urlsplit(smtp_url)
    host = parts.hostname or "localhost"
    context = ssl.create_default_context()
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, parts.port or 465, timeout=_TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(host, parts.port or 25, timeout=_TIMEOUT_S)
        server.ehlo()
        if server.has_extn("starttls"):
            server.starttls(context=context)
    if parts.username:
        server.login(unquote(parts.username), unquote(parts.password or ""))
    return server
