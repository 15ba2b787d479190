"""``remotegpu host|gpu|quota|image|user``."""

from __future__ import annotations

import argparse
import shlex
from datetime import UTC, datetime

import remotegpu
from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_hosts(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Host", client.hosts.list())


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


def cordon_host(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        host = client.hosts.cordon(arguments.host)
        output.show_item(arguments, host, f"{host.name} takes no new work; what runs there goes on.")


def uncordon_host(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        host = client.hosts.uncordon(arguments.host)
        output.show_item(arguments, host, f"{host.name} takes new work.")


def list_gpus(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        free = True if arguments.free else None
        found = client.gpus.list(host=arguments.host, model=arguments.model, free=free)
        output.show_list(arguments, "Gpu", found)


def show_quota(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "QuotaLine", client.quotas.mine().lines)


def get_quota(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "QuotaLine", client.quotas.get(arguments.subject, arguments.name).lines)


def set_quota(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        quota = client.quotas.set(arguments.subject, arguments.name, limits=dict(arguments.limit))
        output.show_list(arguments, "QuotaLine", quota.lines)


def list_images(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Image", client.images.list())


def add_image(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        image = client.images.create(
            name=arguments.name,
            reference=arguments.reference,
            display_name=arguments.display_name,
            digest=arguments.digest,
            runtime=arguments.runtime,
            command=arguments.command,
        )
        output.show_item(arguments, image, f"{image.name} ({image.reference}) may run.")


def list_users(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "User", client.users.list())


def add_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        created = client.users.create(
            username=arguments.username,
            customer=arguments.customer,
            display_name=arguments.display_name,
            email=arguments.email,
            role=arguments.role,
        )
    shown = f" One-time password, shown this once: {created.one_time_password}"
    sentence = f"{created.user.username} ({created.user.role}) may sign in."
    output.show_item(arguments, created, sentence + (shown if created.one_time_password else ""))


def suspend_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        user = client.users.suspend(arguments.user)
        output.show_item(arguments, user, f"{user.username} is {user.status}.")


def resume_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        user = client.users.resume(arguments.user)
        output.show_item(arguments, user, f"{user.username} is {user.status}.")
