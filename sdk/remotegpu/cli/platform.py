"""``remotegpu gpu|image|user``."""

from __future__ import annotations

import argparse

from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_gpus(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        free = True if arguments.free else None
        found = client.gpus.list(host=arguments.host, model=arguments.model, free=free)
        output.show_list(arguments, "Gpu", found)


def check_gpu(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        check = client.gpus.check(arguments.gpu)
        said = f"Its agent was asked; `remotegpu event watch --subject-id {check.gpu_id}` tells the result."
        output.show_item(arguments, check, said)


def restore_gpu(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        gpu = client.gpus.restore(arguments.gpu, reason=arguments.reason)
        output.show_item(arguments, gpu, f"{gpu.uuid} on {gpu.host_name} takes work again.")


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


def activate_image(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        image = client.images.update(arguments.image, status="active")
        output.show_item(arguments, image, f"{image.name} may run.")


def deprecate_image(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        image = client.images.update(
            arguments.image,
            status="deprecated",
            starts_until=arguments.until,
            deprecation_note=arguments.note,
        )
        output.show_item(arguments, image, f"{image.name} is deprecated; what runs goes on.")


def withdraw_image(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        image = client.images.update(arguments.image, status="withdrawn")
        output.show_item(arguments, image, f"{image.name} is withdrawn; what runs goes on.")
