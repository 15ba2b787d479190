"""Sending mail over SMTP. Blocking, so it runs in a thread."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.errors import MessageError
from email.message import EmailMessage
from urllib.parse import SplitResult, unquote, urlsplit

_TIMEOUT_S = 5.0
_LONGEST_S = 15.0
"""A slow server gets no more of a batch after this long."""
CUT_S = 25.0
"""After so long the connection of a batch is cut, whatever the server is doing."""
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
    begun = time.monotonic()
    parts = urlsplit(smtp_url)
    try:
        server = _connect(parts)
        with _cut(server, at=begun + CUT_S), server:
            _sign_in(server, parts)
            for mail in mails:
                if outcomes and time.monotonic() > begun + _LONGEST_S:
                    break
                outcomes.append(_send_one(server, sender, mail))
    except (OSError, smtplib.SMTPException, ssl.SSLError) as error:
        outcomes.append(Outcome(error=_said(error)))
    outcomes = outcomes[: len(mails)]  # a connection that failed at its very end had sent everything
    return outcomes + [None] * (len(mails) - len(outcomes))


def _send_one(server: smtplib.SMTP, sender: str, mail: Mail) -> Outcome:
    try:
        message = _message(sender, mail)
    except (ValueError, LookupError, AttributeError, MessageError) as error:
        # email.headerregistry raises any of these about an address that it cannot read
        return Outcome(error=f"the mail cannot be written: {_said(error)}", final=True)
    try:
        server.send_message(message, to_addrs=[mail.to])
    except (ValueError, smtplib.SMTPNotSupportedError) as error:  # an address that this server cannot be told
        server.rset()
        return Outcome(error=_said(error), final=True)
    except smtplib.SMTPRecipientsRefused as error:
        code, text = next(iter(error.recipients.values()))
        return Outcome(error=f"{code} {text.decode(errors='replace')}"[:500], final=500 <= code < 600)
    except smtplib.SMTPServerDisconnected:
        raise
    except smtplib.SMTPResponseException as error:
        return Outcome(error=_said(error), final=False)
    return Outcome()


def _message(sender: str, mail: Mail) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = sender, mail.to
    message["Subject"] = " ".join(mail.subject.split())[:200]
    message["Message-ID"] = f"<{mail.message_id}@{sender.rpartition('@')[2] or 'remotegpu'}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    return message


def _connect(parts: SplitResult) -> smtplib.SMTP:
    host = parts.hostname or "localhost"
    if parts.scheme == "smtps":
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(host, parts.port or 465, timeout=_TIMEOUT_S, context=context)
    return smtplib.SMTP(host, parts.port or 25, timeout=_TIMEOUT_S)


@contextlib.contextmanager
def _cut(server: smtplib.SMTP, *, at: float) -> Iterator[None]:
    """Ends the connection then: a server that says a little all the time is inside of every timeout."""

    def cut() -> None:
        open_socket = server.sock
        if open_socket is not None:
            with contextlib.suppress(OSError):  # the other side has ended it just now
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, at - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _sign_in(server: smtplib.SMTP, parts: SplitResult) -> None:
    private = parts.scheme == "smtps" or (parts.hostname or "localhost") in _HERE
    if parts.scheme != "smtps":
        server.ehlo()
        if server.has_extn("starttls"):
            server.starttls(context=ssl.create_default_context())
            private = True
    if parts.username:
        if not private:
            raise smtplib.SMTPNotSupportedError("it offers no TLS, so the password is not sent")
        server.login(unquote(parts.username), unquote(parts.password or ""))


def _said(error: Exception) -> str:
    """Never the credentials: they are in no SMTP answer."""
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        return f"{error.smtp_code} {words}"[:500]
    return f"{type(error).__name__}: {error}"[:500]
