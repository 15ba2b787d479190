"""Sending mail over SMTP. Blocking, so it runs in a thread."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

_TIMEOUT_S = 10.0
_LONGEST_S = 30.0
"""A slow server gets no more of a batch after this long."""
_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail to one person. ``message_id`` stays the same when it is sent again."""

    message_id: str
    to: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went: ``error`` is None when the server took it, ``final`` when it never will."""

    error: str | None = None
    final: bool = False


def send(smtp_url: str, *, sender: str, mails: Sequence[Mail]) -> list[Outcome | None]:
    """Send over one connection; an outcome for each mail, ``None`` for those that were not tried.

    ``smtp://[user:password@]host[:port]`` upgrades to TLS where the server offers it; ``smtps://`` is TLS
    from the start. A connection that fails is the outcome of the mail that it failed for.
    """
    outcomes: list[Outcome | None] = []
    ends = time.monotonic() + _LONGEST_S
    try:
        with _connect(smtp_url) as server:
            for mail in mails:
                if outcomes and time.monotonic() > ends:
                    break
                outcomes.append(_send_one(server, sender, mail))
    except (OSError, smtplib.SMTPException, ssl.SSLError) as error:
        outcomes.append(Outcome(error=_said(error)))
    outcomes = outcomes[: len(mails)]  # a connection that failed at its very end had sent everything
    return outcomes + [None] * (len(mails) - len(outcomes))


def _send_one(server: smtplib.SMTP, sender: str, mail: Mail) -> Outcome:
    message = EmailMessage()
    message["From"], message["To"] = sender, mail.to
    message["Subject"] = " ".join(mail.subject.split())[:200]
    message["Message-ID"] = f"<{mail.message_id}@{sender.rpartition('@')[2] or 'remotegpu'}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    try:
        server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        ((code, text),) = error.recipients.values()
        return Outcome(error=f"{code} {text.decode(errors='replace')}"[:500], final=500 <= code < 600)
    except smtplib.SMTPServerDisconnected:
        raise
    except smtplib.SMTPResponseException as error:
        return Outcome(error=_said(error), final=False)
    return Outcome()


def _connect(smtp_url: str) -> smtplib.SMTP:
    parts = urlsplit(smtp_url)
    host = parts.hostname or "localhost"
    context = ssl.create_default_context()
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, parts.port or 465, timeout=_TIMEOUT_S, context=context)
        private = True
    else:
        server = smtplib.SMTP(host, parts.port or 25, timeout=_TIMEOUT_S)
        private = host in _HERE
        server.ehlo()
        if server.has_extn("starttls"):
            server.starttls(context=context)
            private = True
    if parts.username:
        if not private:
            server.close()
            raise smtplib.SMTPNotSupportedError("it offers no TLS, so the password is not sent")
        server.login(unquote(parts.username), unquote(parts.password or ""))
    return server


def _said(error: Exception) -> str:
    """Never the credentials: they are in no SMTP answer."""
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        return f"{error.smtp_code} {words}"[:500]
    return f"{type(error).__name__}: {error}"[:500]
