"""The settings of DockerSpawner that a site brings along, so that it moves over by changing the class."""

from __future__ import annotations

import inspect
from typing import Any

from traitlets import Any as AnyTrait
from traitlets import Dict, List, Unicode
from traitlets.config import LoggingConfigurable

from remotegpu.types.images import Image, ImageStatus
from remotegpu_spawner.errors import SpawnRefused
from remotegpu_spawner.naming import dns_label, environment_name, from_template

IGNORED = (
    "volumes",
    "read_only_volumes",
    "mounts",
    "extra_create_kwargs",
    "extra_host_config",
    "network_name",
    "remove",
    "use_internal_ip",
    "use_internal_hostname",
    "host_ip",
    "pull_policy",
    "links",
    "tls_config",
    "args",
    "cmd",
    "cpu_guarantee",
    "mem_guarantee",
)
"""What has no meaning here; a site that sets one of them is told at each start."""


class DockerSpawner(LoggingConfigurable):
    """Understands DockerSpawner's settings, and says which of them mean nothing here.

    It bears that name because traitlets reads ``c.DockerSpawner.…`` for every parent class of that name.
    """

    user: Any
    name: str

    image = Unicode("", help="Default image: its name or reference on the server's allow-list.").tag(
        config=True
    )
    allowed_images = AnyTrait(
        None,
        allow_none=True,
        help="Images offered on the form: a list, a dict of label → image, or a callable of the spawner.",
    ).tag(config=True)
    name_template = Unicode(
        "", help="Name of the environment, such as {prefix}-{username}--{servername}; empty: the server's."
    ).tag(config=True)
    prefix = Unicode("jupyter", help="Value of {prefix} in name_template.").tag(config=True)

    volumes = Dict(help="Ignored: every user has one home, made by the platform.").tag(config=True)
    read_only_volumes = Dict(help="Ignored, as volumes.").tag(config=True)
    mounts = List(help="Ignored, as volumes.").tag(config=True)
    extra_create_kwargs = AnyTrait(None, allow_none=True, help="Ignored.").tag(config=True)
    extra_host_config = AnyTrait(None, allow_none=True, help="Ignored.").tag(config=True)
    network_name = Unicode("", help="Ignored: each environment has a network of its own.").tag(config=True)
    remove = AnyTrait(None, allow_none=True, help="Ignored: containers are always removed, homes never.").tag(
        config=True
    )
    use_internal_ip = AnyTrait(None, allow_none=True, help="Ignored: the agent reports the address.").tag(
        config=True
    )
    use_internal_hostname = AnyTrait(None, allow_none=True, help="Ignored, as use_internal_ip.").tag(
        config=True
    )
    host_ip = AnyTrait(None, allow_none=True, help="Ignored, as use_internal_ip.").tag(config=True)
    pull_policy = AnyTrait(None, allow_none=True, help="Ignored: images are pinned by digest.").tag(
        config=True
    )
    links = AnyTrait(None, allow_none=True, help="Ignored.").tag(config=True)
    tls_config = AnyTrait(None, allow_none=True, help="Ignored: the agents speak to the engines.").tag(
        config=True
    )

    def ignored(self) -> list[str]:
        """Names of the settings that the site gave and that have no meaning here."""
        return [name for name in IGNORED if self.is_configured(name)]

    def is_configured(self, name: str) -> bool:
        """Whether the site's configuration sets this on the class or one of its parents."""
        sections = self._find_my_config(self.config) if self.config else {}
        return name in sections

    @property
    def environment_name(self) -> str:
        """The environment behind this hub server."""
        if not self.name_template:
            return environment_name(self.name)
        try:
            return from_template(self.name_template, fields=self._template_fields(), server_name=self.name)
        except (KeyError, ValueError, IndexError) as error:
            known = ", ".join(sorted(self._template_fields()))
            raise SpawnRefused(
                f"The hub's name_template has a field that is not known here: {error}. Known: {known}. "
                "Ask your administrator.",
                reason="setup",
                status_code=500,
            ) from None

    def _template_fields(self) -> dict[str, str]:
        username = dns_label(self.user.name)
        return {
            "username": username,
            "safe_username": username,
            "raw_username": self.user.name,
            "servername": dns_label(self.name),
            "raw_servername": self.name,
            "imagename": dns_label(self.image),
            "prefix": self.prefix,
            "user_id": str(self.user.id),
        }

    async def offered(self, images: list[Image]) -> list[tuple[str, Image]]:
        """The part of the allow-list that this site offers, in its order, with the site's labels.

        A label is empty where the site gave none.
        """
        active = [image for image in images if image.status is ImageStatus.ACTIVE]
        allowed = self.allowed_images(self) if callable(self.allowed_images) else self.allowed_images
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if not allowed:
            return [("", image) for image in active]
        if isinstance(allowed, dict):
            labels = {name: "" if label == name else label for label, name in allowed.items()}
        else:
            labels = dict.fromkeys(allowed, "")
        return [(label, image) for name, label in labels.items() if (image := _named(name, active))]

    async def chosen_image(self, wanted: str, images: list[Image]) -> Image:
        """The offered image of that name, reference, id or label; of no name: the first one offered."""
        offered = await self.offered(images)
        if not offered:
            raise SpawnRefused(
                "No image may run yet. An admin adds one with `remotegpu image add`.", reason="image"
            )
        if not wanted:
            return offered[0][1]
        labelled = next((image for label, image in offered if label == wanted), None)
        image = labelled or _named(wanted, [image for _, image in offered])
        if image is None:
            names = ", ".join(image.name for _, image in offered)
            raise SpawnRefused(
                f"The image {wanted[:100]!r} is not offered here. Choose one of: {names}.", reason="image"
            )
        return image


def _named(name: str, images: list[Image]) -> Image | None:
    """By name, reference or id. DockerSpawner's references often leave out the tag, which means `latest`."""
    tagged = name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"
    for image in images:
        if name in (image.name, image.reference, image.id) or image.reference == tagged:
            return image
    return None
