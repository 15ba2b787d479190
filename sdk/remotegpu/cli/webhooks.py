"""``remotegpu webhook``."""

from __future__ import annotations

import argparse

from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Webhook", client.webhooks.list())


def create(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        made = client.webhooks.create(url=arguments.url, events=arguments.event)
        output.show_item(
            arguments, made, f"{made.webhook.id} is made. Its secret, shown this once:\n{made.secret}"
        )


def delete(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.webhooks.delete(arguments.webhook)
    output.say(arguments, f"The webhook {arguments.webhook} is deleted.", id=arguments.webhook)


def test(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        sent = client.webhooks.test(arguments.webhook)
        output.show_item(arguments, sent, f"{sent.id} is on its way; `webhook log` says how it went.")


def log(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "WebhookDelivery", client.webhooks.deliveries(arguments.webhook))


def enable(arguments: argparse.Namespace) -> None:
    _switch(arguments, enabled=True)


def disable(arguments: argparse.Namespace) -> None:
    _switch(arguments, enabled=False)


def _switch(arguments: argparse.Namespace, *, enabled: bool) -> None:
    with connect(arguments) as client:
        one = client.webhooks.update(arguments.webhook, enabled=enabled)
        output.show_item(arguments, one, f"{one.id} is {'on' if one.enabled else 'off'}.")
