"""Names of environments for hub servers."""

from __future__ import annotations

import re

DEFAULT = "default"
"""The environment behind the unnamed server."""

_FORBIDDEN = re.compile(r"[^a-z0-9]+")


def environment_name(server_name: str, template: str = "", username: str = "") -> str:
    """The environment's name for a hub server: the server's own, or DockerSpawner's ``name_template``.

    Always a DNS label, and never ``default`` for a named server.
    """
    if template:
        raw = template.format(prefix="jupyter", username=username, servername=server_name, imagename="")
    else:
        raw = server_name
    label = _FORBIDDEN.sub("-", raw.lower()).strip("-")[:63].strip("-")
    if server_name and label == DEFAULT:
        return f"{DEFAULT}-server"
    return label or DEFAULT
