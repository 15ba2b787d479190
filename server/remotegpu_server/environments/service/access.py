"""How to reach an environment that runs: addresses and names, never a credential."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import StateConflict
from remotegpu.types.environments import (
    EnvironmentAccess,
    EnvironmentStatus,
    JupyterAccess,
    PortAccess,
    SshAccess,
)
from remotegpu_server.authz import Action, Actor
from remotegpu_server.crypto import Vault
from remotegpu_server.db import tables
from remotegpu_server.environments.service import read
from remotegpu_server.placing import open_env

SSH, DESKTOP = "ssh", "desktop"
USERNAME = "jovyan"
"""The user of every environment."""


async def get_access(
    db: AsyncSession, *, actor: Actor, environment_id: str, vault: Vault, hub_url: str
) -> EnvironmentAccess:
    """Raises :class:`StateConflict` unless it runs."""
    bundle = await read.visible(
        db, actor=actor, action=Action.ENVIRONMENT_ACCESS, environment_id=environment_id
    )
    environment = bundle.environment
    if environment.status != EnvironmentStatus.RUNNING or environment.address is None:
        raise StateConflict(
            f"{environment.name} is {environment.status}; only one that runs can be reached.",
            hint=f"`remotegpu env start {environment.name}` starts it.",
        )
    path = open_env(vault, environment.secret_env).get("JUPYTERHUB_SERVICE_PREFIX")
    ports = [_port(name, address) for name, address in sorted(environment.endpoints.items())]
    ssh = next((port for port in ports if port.name == SSH), None)
    return EnvironmentAccess(
        environment_id=environment.id,
        jupyter=JupyterAccess(
            url=f"{hub_url}{path}" if hub_url and path else None, path=path, address=environment.address
        ),
        ssh=None if ssh is None else _ssh(ssh),
        ssh_note=await _ssh_note(db, environment=environment, ssh=ssh, image=bundle.image),
        desktop=next((port for port in ports if port.name == DESKTOP), None),
        ports=[port for port in ports if port.name not in (SSH, DESKTOP)],
    )


def _port(name: str, address: str) -> PortAccess:
    host, _, port = address.rpartition(":")
    return PortAccess(name=name, host=host, port=int(port))


def _ssh(port: PortAccess) -> SshAccess:
    return SshAccess(
        host=port.host,
        port=port.port,
        username=USERNAME,
        command=f"ssh -p {port.port} {USERNAME}@{port.host}",
    )


async def _ssh_note(
    db: AsyncSession, *, environment: tables.Environment, ssh: PortAccess | None, image: tables.Image
) -> str | None:
    if ssh is None and image.runtime == "process":
        return "Its host runs processes without containers, and those have no SSH."
    if ssh is None:
        return "Its image has no SSH server."
    key = tables.SshKey
    known = await db.scalar(select(key.id).where(key.user_id == environment.owner_id).limit(1))
    if known is None:
        return "No key is registered: `remotegpu ssh-key add FILE` adds one."
    return None
