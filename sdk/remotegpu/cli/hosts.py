"""``remotegpu host``."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import remotegpu
from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_hosts(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.hosts.list(
            operational=arguments.operational,
            connection=arguments.connection,
            health=arguments.health,
            labels=arguments.label,
            gpu_model=arguments.gpu_model,
        )
        output.show_list(arguments, "Host", found)


def show_host(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        host = client.hosts.get(arguments.host)
    facts = host.model_dump(mode="json", exclude={"metrics"}, exclude_none=True)
    output.show_item(arguments, host, "\n".join(f"{name}: {value}" for name, value in facts.items()))


def add_host(arguments: argparse.Namespace) -> None:
    """Make a host and its one-time token, and say what to type on the machine."""
    with connect(arguments) as client:
        try:
            client.hosts.create(name=arguments.name, labels=dict(arguments.label) or None)
        except remotegpu.NameTaken as error:
            if not arguments.again:
                raise remotegpu.NameTaken(
                    error.detail,
                    hint=f"`remotegpu host add {arguments.name} --again` makes a new token for it.",
                    request_id=error.request_id,
                ) from error
        token = client.hosts.create_enrollment_token(arguments.name)
        url = shlex.quote(client.url)
    minutes = max(1, round((token.expires_at - datetime.now(UTC)).total_seconds() / 60))
    output.show_item(
        arguments,
        token,
        f"Host {arguments.name} can join. Type this on it within {minutes} minutes; the token works once:\n"
        f"  printf %s {shlex.quote(token.secret)} |"
        f" remotegpu-agent enroll --url {url} --token-file /dev/stdin\n"
        f"  remotegpu-agent run --url {url}",
    )


def operate(arguments: argparse.Namespace) -> None:
    """One verb for each host; those that are refused are said, and make the command fail."""
    with connect(arguments) as client:
        done = client.hosts.batch(
            arguments.verb,
            arguments.hosts,
            reason=arguments.reason or None,
            deadline_s=arguments.deadline,
        )
    refused = "; ".join(f"{host}: {why}" for host, why in done.failed.items())
    if refused:
        finished = f" Done: {', '.join(done.succeeded)}." if done.succeeded else ""
        raise remotegpu.Conflict(f"{refused}{finished}")
    output.show_item(arguments, done, f"{arguments.verb}: {', '.join(done.succeeded)}.")


def rotate_credential(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        made = client.hosts.rotate_credential(arguments.host, overlap_s=arguments.overlap)
    output.show_item(
        arguments,
        made,
        f"Type this on {arguments.host} and restart its agent, before the old secret ends:\n"
        f"  printf %s {shlex.quote(made.secret)} | remotegpu-agent install-credential",
    )


def revoke_credential(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        host = client.hosts.revoke_credential(arguments.host)
    output.show_item(arguments, host, f"{host.name} has no credential any more; what runs there goes on.")


def import_csv(arguments: argparse.Namespace) -> None:
    """A host for each line; lines that are refused are said, and make the command fail."""
    text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text(encoding="utf-8-sig")
    with connect(arguments) as client:
        done = client.hosts.import_csv(text, dry_run=arguments.dry_run)
    refused = "; ".join(f"line {line}: {why}" for line, why in done.failed.items())
    verb = "Would add" if arguments.dry_run else "Added"
    added = f"{verb} {len(done.succeeded)} hosts."
    if refused:
        raise remotegpu.Conflict(f"{refused} {added}")
    output.show_item(arguments, done, added)


def export_csv(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        text = client.hosts.export_csv()
    output.say(arguments, text.rstrip(), csv=text)
