"""``remotegpu env``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any
from urllib.parse import quote

import remotegpu
from remotegpu import _progress
from remotegpu.cli import output, watching
from remotegpu.cli.connection import connect, find_environment
from remotegpu.cli.failures import UsageError
from remotegpu.types.environments import Environment

SAVE_POLL_S = 1.0
HUB_VARIABLES = ("REMOTEGPU_HUB_URL", "JUPYTERHUB_PUBLIC_HUB_URL")


def list_(arguments: argparse.Namespace) -> None:
    """The environments that the caller may see."""
    with connect(arguments) as client:
        found = client.environments.list(owner=arguments.owner, status=arguments.status)
        output.show_list(arguments, "Environment", found)


def queue(arguments: argparse.Namespace) -> None:
    """What waits, the next one first."""
    with connect(arguments) as client:
        found = list(client.environments.list(owner=arguments.owner, status="pending"))
    found.sort(key=lambda one: one.queue_position or sys.maxsize)
    if arguments.json:
        output.show_list(arguments, "Environment", found)
        return
    lines: list[str] = []
    for environment in found:
        lines.append(_progress.describe(environment))
        if environment.wait is not None:
            lines += [f"    {line}" for line in _progress.wait_lines(environment.wait)]
    output.show_text(arguments, "\n".join(lines or ["Nothing waits."]))


def create(arguments: argparse.Namespace) -> None:
    """Make one, and wait until it runs."""
    with connect(arguments) as client:
        environment = client.environments.create(
            name=arguments.name,
            image=arguments.image,
            **sizes(arguments),
            env=dict(arguments.env) or None,
            priority=arguments.priority,
            preemptible=arguments.preemptible,
            min_run_s=arguments.min_run,
            start_at=arguments.start_at,
            queue=not arguments.no_queue,
        )
        _wait_and_show(client, arguments, environment)


def start(arguments: argparse.Namespace) -> None:
    """Start a stopped one, and wait until it runs."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        environment = client.environments.start(
            known.id,
            image=arguments.image,
            **sizes(arguments),
            env=dict(arguments.env) or None,
            priority=arguments.priority,
            preemptible=arguments.preemptible,
            min_run_s=arguments.min_run,
            start_at=arguments.start_at,
            queue=not arguments.no_queue,
        )
        _wait_and_show(client, arguments, environment)


def sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options of GPUs, CPUs and memory say; ``None`` where one was left out."""
    return {
        "gpus": arguments.gpus,
        "gpu_models": arguments.gpu_model,
        "gpu_memory_bytes": arguments.gpu_memory,
        "min_gpu_memory_bytes": arguments.min_gpu_memory,
        "max_gpu_memory_bytes": arguments.max_gpu_memory,
        "mig_profile": arguments.mig_profile,
        "host_labels": dict(arguments.host_label) if arguments.host_label else None,
        "cpus": arguments.cpus,
        "memory_bytes": arguments.memory,
    }


def _wait_and_show(client: remotegpu.Client, arguments: argparse.Namespace, environment: Environment) -> None:
    if not arguments.no_wait:
        try:
            environment = client.environments.wait_ready(environment.id, timeout_s=arguments.timeout)
        except KeyboardInterrupt:
            print(f"\n{_goes_on(environment)}", file=sys.stderr)
            raise
        except remotegpu.WaitTimeout:
            print(_goes_on(environment), file=sys.stderr)
            raise
    output.show_item(arguments, environment, _sentence(environment))


def _goes_on(environment: Environment) -> str:
    return (
        f"{environment.name} goes on waiting or starting; `remotegpu env stop {environment.name}` ends that."
    )


def _sentence(environment: Environment) -> str:
    where = f" on {environment.host_name}" if environment.host_name else ""
    with_gpus = ", ".join(
        f"{gpu.model}{' (simulated)' if gpu.simulated else ''}" for gpu in environment.allocated_gpus
    )
    gpus = f" with {with_gpus}" if with_gpus else ""
    words = f": {environment.message}" if environment.message else ""
    return f"{environment.name} is {environment.status}{where}{gpus}{words}"


def stop(arguments: argparse.Namespace) -> None:
    """Stop it, and wait until its GPUs are free."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        environment = client.environments.stop(known.id)
        if not arguments.no_wait:
            environment = client.environments.wait_stopped(
                known.id, timeout_s=arguments.timeout, progress=True
            )
        output.show_item(arguments, environment, _sentence(environment))


def remove(arguments: argparse.Namespace) -> None:
    """Stop and remove it; the home stays."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        client.environments.delete(known.id)
        output.say(
            arguments, f"{known.name} is being removed; its owner's files stay.", id=known.id, name=known.name
        )


def logs(arguments: argparse.Namespace) -> None:
    """Its newest output."""
    if arguments.follow:
        watching.follow_logs(arguments)
        return
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        found = client.environments.logs(known.id, tail_lines=arguments.tail)
    if not found.live and not arguments.json:
        print("(the container is gone; this is what was kept)", file=sys.stderr)
    output.show_text(arguments, found.text, **found.model_dump(mode="json"))


def open_(arguments: argparse.Namespace) -> None:
    """Print where its notebook is: through the hub where that is known, else its own address."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
    hub = next((os.environ[name] for name in HUB_VARIABLES if os.environ.get(name)), None)
    if hub is not None:
        root = hub.rstrip("/").removesuffix("/hub")
        server = "" if known.name == "default" else f"{quote(known.name, safe='')}/"
        address: str | None = f"{root}/user/{quote(known.owner, safe='@')}/{server}"
    else:
        address = known.address
    if address is None:
        raise remotegpu.StateConflict(
            f"{known.name} is {known.status} and has no address.",
            hint=f"`remotegpu env start {known.name}` starts it.",
        )
    if hub is None and not arguments.json:
        print(
            "This is its own address, as its host sees it. Where it asks for a token, see"
            f" `remotegpu env logs {known.name}`. With"
            f" {HUB_VARIABLES[0]} set, this command prints the address in the hub.",
            file=sys.stderr,
        )
    output.say(arguments, address, url=address)


def restart(arguments: argparse.Namespace) -> None:
    """A new start in the same place, and wait until it runs."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        _wait_and_show(client, arguments, client.environments.restart(known.id))


def rename(arguments: argparse.Namespace) -> None:
    """Another name."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        renamed = client.environments.rename(
            known.id, name=arguments.name, display_name=arguments.display_name
        )
        output.show_item(arguments, renamed, f"{known.name} is now {renamed.name}.")


def extend(arguments: argparse.Namespace) -> None:
    """Put its stop off."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        extended = client.environments.extend(known.id, by_s=arguments.hours * 3600)
        when = (
            f"stops at {extended.stops_at:%Y-%m-%d %H:%M} UTC"
            if extended.stops_at is not None
            else "is not going to be stopped now"
        )
        output.show_item(arguments, extended, f"{extended.name} {when}.")


def save(arguments: argparse.Namespace) -> None:
    """Make an image of it; wait until it is there, unless told otherwise."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        saved = client.environments.save_image(
            known.id,
            name=arguments.image,
            display_name=arguments.display_name,
            description=arguments.description,
        )
        ends = time.monotonic() + arguments.timeout
        while not arguments.no_wait and saved.status in ("requested", "saving"):
            if time.monotonic() > ends:
                raise remotegpu.WaitTimeout(f"{saved.image_name} is not saved after {arguments.timeout:g} s.")
            time.sleep(SAVE_POLL_S)
            saved = next(one for one in client.environments.image_saves(known.id) if one.id == saved.id)
        output.show_item(arguments, saved, saved.message)
        if saved.status in ("failed", "cancelled"):
            sys.exit(1)


def cancel_save(arguments: argparse.Namespace) -> None:
    """Take the save back that is under way."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        for found in client.environments.image_saves(known.id):
            if found.status in ("requested", "saving"):
                saved = client.environments.cancel_image_save(found.id)
                output.show_item(arguments, saved, saved.message)
                return
    raise UsageError(f"{known.name} is not being saved.")


def access(arguments: argparse.Namespace) -> None:
    """How to reach it."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        found = client.environments.access(known.id)
    lines = [f"notebook  {found.jupyter.url or found.jupyter.address}"]
    if found.ssh is not None:
        lines.append(f"ssh       {found.ssh.command}")
    if found.ssh_note is not None:
        lines.append(f"          {found.ssh_note}")
    others = [*([found.desktop] if found.desktop is not None else []), *found.ports]
    lines += [f"{port.name:<9} {port.host}:{port.port}" for port in others]
    output.show_item(arguments, found, "\n".join(lines))
