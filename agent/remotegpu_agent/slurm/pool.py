"""The agents of all nodes of a partition, in one process on a login node."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import remotegpu
from remotegpu_agent import inventory
from remotegpu_agent.runner import Agent, Exit, Parts, until_told_to_stop
from remotegpu_agent.runtime import RuntimeUnavailable
from remotegpu_agent.settings import Credential, Settings, SettingsError, credential_path, load_credential
from remotegpu_agent.slurm.commands import Node, Slurm
from remotegpu_agent.slurm.nodes import NodeGpus, NodeMeter, NodeRuntime, gres_gpus
from remotegpu_agent.slurm.tasks import SlurmTasks

log = logging.getLogger(__name__)

FIRST_LOOK_PAUSE_S = 5.0
TASKS_A_CPU = 4


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How a partition is offered."""

    partition: str
    gpu_types: Mapping[str, str]
    """By type of GRES, models such as ``A100-80GB``."""
    simulated: bool
    """The device files of this cluster have no GPU behind them."""


async def run(settings: Settings, pool: Pool) -> Exit:
    """Serve until SIGTERM or SIGINT, or until one agent fails. ``state_dir`` holds one folder a node.

    Raises SettingsError where no node is enrolled, or Slurm's inventory cannot be understood.
    """
    if os.geteuid() == 0:
        log.warning("this agent runs as root, and so do the jobs of all tasks: give it a user of its own")
    stopping = until_told_to_stop()
    slurm = Slurm(pool.partition)
    nodes = await _first_look(slurm, stopping)
    if nodes is None:
        return Exit.STOPPED
    agents = [
        asyncio.create_task(_serve(_settings_of(settings, node), pool, slurm, node, stopping), name=node.name)
        for node in _enrolled(settings, pool, nodes)
    ]
    ended: list[Exit] = []
    for agent in asyncio.as_completed(agents):
        ended.append(await agent)
        if ended[-1] is Exit.FAILED:
            stopping.set()  # whoever supervises this process starts it again, with all nodes
    return Exit.FAILED if Exit.FAILED in ended else max(ended)


async def _first_look(slurm: Slurm, stopping: asyncio.Event) -> dict[str, Node] | None:
    """The nodes, as soon as Slurm answers; ``None``: told to stop before."""
    while not stopping.is_set():
        try:
            return await slurm.nodes()
        except RuntimeUnavailable as error:
            log.warning("%s", error)
        try:
            async with asyncio.timeout(FIRST_LOOK_PAUSE_S):
                await stopping.wait()
        except TimeoutError:
            continue
    return None


def _enrolled(settings: Settings, pool: Pool, nodes: Mapping[str, Node]) -> list[Node]:
    found: list[Node] = []
    missing: list[Node] = []
    for node in nodes.values():
        enrolled = credential_path(settings.state_dir / node.name).exists()
        (found if enrolled else missing).append(node)
    if missing:
        log.warning("not enrolled, and not offered: %s", ", ".join(node.name for node in missing))
    if not found:
        raise SettingsError(
            f"No node of partition {pool.partition} is enrolled. For each: `remotegpu host add NODE`, then "
            f"`remotegpu-agent enroll --state-dir {settings.state_dir}/NODE --token-file FILE`."
        )
    return found


def _settings_of(settings: Settings, node: Node) -> Settings:
    state_dir = settings.state_dir / node.name
    return replace(
        settings,
        state_dir=state_dir,
        home_root=state_dir / "homes",
        address=node.name,
        max_tasks=TASKS_A_CPU * node.cpus,
    )


async def _serve(settings: Settings, pool: Pool, slurm: Slurm, node: Node, stopping: asyncio.Event) -> Exit:
    credential = load_credential(settings.state_dir)
    settings = replace(settings, url=settings.url or credential.url)
    settings.home_root.mkdir(parents=True, exist_ok=True, mode=0o755)
    parts = _parts(settings, credential, pool, slurm, node)
    async with remotegpu.AsyncClient(url=settings.url, token=credential.secret, max_retries=0) as client:
        return await Agent(settings, credential, api=client.agent, parts=parts).serve(stopping)


def _parts(settings: Settings, credential: Credential, pool: Pool, slurm: Slurm, node: Node) -> Parts:
    host_id = credential.host_id
    gpus = NodeGpus(host_id, gres_gpus(node.gres, pool.gpu_types), simulated=pool.simulated)
    meter = NodeMeter(settings.home_root)
    return Parts(
        runtime=NodeRuntime(slurm, node.name, meter),
        tasks=SlurmTasks(settings, host_id, slurm=slurm, node_name=node.name, gpus=gpus),
        gpus=gpus,
        meter=meter,
        machine=inventory.Machine(
            hostname=node.name,
            os=f"node of Slurm {node.version}",
            kernel="",
            cpus=node.cpus,
            memory_bytes=node.memory_mib * 2**20,
            # A node that starts anew proves nothing that Slurm does not tell of each job besides.
            boot_id=f"slurm-{node.name}",
        ),
    )
