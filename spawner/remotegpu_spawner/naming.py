"""Names of environments for hub servers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

DEFAULT = "default"
"""The environment behind the unnamed server."""

_FORBIDDEN = re.compile(r"[^a-z0-9]+")
_LONGEST = 63
_DIGEST = 6


def environment_name(server_name: str) -> str:
    """The environment's name for a hub server: always a DNS label, and another one for each server.

    A name that had to be changed gets a short digest, so that ``My GPU`` and ``my-gpu`` stay two servers.
    """
    if not server_name:
        return DEFAULT
    label = dns_label(server_name)
    return label if label == server_name != DEFAULT else _distinct(label, server_name)


def from_template(template: str, *, fields: Mapping[str, str], server_name: str) -> str:
    """The name by DockerSpawner's ``name_template``. :raises KeyError: it names an unknown field.

    A template that does not name the server gives all servers of a user one name; the server's is added.
    """
    raw = template.format_map(fields)
    label = dns_label(raw)
    if server_name and "servername" not in template:
        return _distinct(label, server_name)
    return label or DEFAULT


def dns_label(text: str) -> str:
    """Lower case letters, digits and single hyphens, at most 63."""
    return _FORBIDDEN.sub("-", text.lower()).strip("-")[:_LONGEST].strip("-")


def _distinct(label: str, origin: str) -> str:
    digest = hashlib.sha256(origin.encode()).hexdigest()[:_DIGEST]
    return f"{label[: _LONGEST - _DIGEST - 1].strip('-') or 'server'}-{digest}"
