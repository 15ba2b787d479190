"""Signing in and out."""

from __future__ import annotations

import argparse
import getpass
import sys

import remotegpu
from remotegpu import _config
from remotegpu.cli import output
from remotegpu.cli.connection import connect
from remotegpu.cli.failures import UsageError


def login(arguments: argparse.Namespace) -> None:
    """Sign in and keep the session token."""
    target = _config.resolve(arguments.server or getattr(arguments, "url", None), "")
    if not arguments.password_stdin and not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for the password; use --username and --password-stdin.")
    if arguments.password_stdin and not arguments.username:
        raise UsageError("--password-stdin needs --username.")
    username = arguments.username or _ask_username()
    if arguments.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        try:
            password = getpass.getpass("Password: ")
        except EOFError:
            raise UsageError("No password was given.") from None
    with remotegpu.Client(target.url, "") as client:
        session = client.auth.login(
            username=username, password=password, expires_in_s=round(arguments.days * 86400)
        )
    kept_in = _config.save(_config.Target(target.url, session.secret))
    user = session.user
    output.show_item(
        arguments, user, f"Signed in to {target.url} as {user.username} ({user.role}). Kept in {kept_in}."
    )


def _ask_username() -> str:
    print("User name: ", end="", file=sys.stderr, flush=True)
    username = sys.stdin.readline().strip()
    if not username:
        raise UsageError("No user name was given.")
    return username


def logout(arguments: argparse.Namespace) -> None:
    """Revoke the kept session token and forget it, whether or not the server can be reached."""
    saved = _config.load()
    if saved is None:
        output.say(arguments, "Nobody was signed in.", signed_out=False)
        return
    try:
        with remotegpu.Client(saved.url, saved.token, timeout_s=10, max_retries=0) as client:
            client.auth.logout()
    except remotegpu.Unauthorized:
        pass  # it had ended already
    finally:
        _config.forget()
    output.say(arguments, f"Signed out of {saved.url}.", signed_out=True)


def whoami(arguments: argparse.Namespace) -> None:
    """Who the server takes us for."""
    with connect(arguments) as client:
        identity = client.me.get()
    if identity.user is not None:
        who = f"{identity.user.username} ({identity.user.role} of {identity.user.customer_name})"
    else:
        who = f"{identity.token.kind} {identity.token.name}"
    output.show_item(arguments, identity, f"{who} at {client.url}, with token {identity.token.name}")
