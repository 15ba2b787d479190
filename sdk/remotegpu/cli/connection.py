"""The client of a command, and finding what the user means by a name."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

import remotegpu
from remotegpu.cli.failures import UsageError

if TYPE_CHECKING:
    from remotegpu.types.environments import Environment

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def connect(arguments: argparse.Namespace) -> remotegpu.Client:
    """A client for the server that ``--url``, the environment or ``remotegpu login`` name."""
    return remotegpu.Client(getattr(arguments, "url", None))


def find_environment(client: remotegpu.Client, given: str, *, owner: str | None) -> Environment:
    """The environment with this name, or else with this id."""
    if _NAME.fullmatch(given):
        found = client.environments.list(name=given, owner=owner).items
        if len(found) > 1:
            owners = ", ".join(sorted(environment.owner for environment in found))
            raise UsageError(f"Several users have an environment {given}: {owners}. Say which with --owner.")
        if found:
            return found[0]
    try:
        return client.environments.get(given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except remotegpu.NotFound as error:
        raise remotegpu.NotFound(
            f"There is no environment {given}.",
            hint="`remotegpu env list` shows yours.",
            request_id=error.request_id,
        ) from error
