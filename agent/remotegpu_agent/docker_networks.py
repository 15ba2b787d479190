"""One network for each workload: a small subnet that nothing else uses, and its bridge's firewall rules."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from remotegpu.types.agent import ClaimedAttempt, Workload
from remotegpu.types.environments import Reason
from remotegpu_agent import container_spec
from remotegpu_agent.docker_client import Engine, EngineError
from remotegpu_agent.firewall import Firewall, FirewallError
from remotegpu_agent.runtime import StartRefused

log = logging.getLogger(__name__)

PREFIX = 28
"""Gateway, one container, and room for a service beside it."""
ATTEMPTS = 8
"""Tries when another process takes the same subnet at the same time."""

Subnet = ipaddress.IPv4Network


class Networks:
    """Creates and removes the networks of one host's workloads."""

    def __init__(self, engine: Engine, firewall: Firewall, *, pool: str) -> None:
        self._engine = engine
        self._firewall = firewall
        self._pool = ipaddress.IPv4Network(pool)

    async def create(self, owner: Workload | ClaimedAttempt, labels: Mapping[str, str]) -> None:
        """Raises StartRefused where the pool is exhausted or the engine refuses."""
        used = used_subnets(await self._engine.networks())
        candidates = free_subnets(self._pool, used, start=owner.id)
        refusal = "all subnets of the pool are in use"
        for _, subnet in zip(range(ATTEMPTS), candidates, strict=False):
            config = container_spec.network_config(owner.id, labels, subnet=str(subnet))
            try:
                await self._engine.create_network(config)
            except EngineError as error:
                refusal = error.message
                if "overlap" in error.message.lower():
                    continue
                break
            await self._allow(owner)
            return
        raise StartRefused(Reason.START_FAILED, f"No network could be made for it: {refusal}")

    async def remove(self, network: dict[str, Any]) -> None:
        await self._engine.remove_network(network["Id"])
        bridge = network.get("Options", {}).get("com.docker.network.bridge.name")
        if bridge:
            try:
                await self._firewall.forget(bridge)
            except FirewallError as error:
                log.warning("rules of the removed bridge %s stay: %s", bridge, error)

    async def _allow(self, owner: Workload | ClaimedAttempt) -> None:
        bridge = container_spec.bridge_name(owner.id)
        try:
            await self._firewall.allow(bridge, owner.env | owner.secret_env)
            if isinstance(owner, ClaimedAttempt) and owner.gang is not None:
                await self._firewall.let_meet(bridge, owner.gang.address, owner.gang.port)
        except FirewallError as error:
            raise StartRefused(Reason.START_FAILED, f"The host's firewall refused a rule: {error}") from error


def used_subnets(networks: Iterable[dict[str, Any]]) -> list[Subnet]:
    found: list[Subnet] = []
    for network in networks:
        for config in (network.get("IPAM") or {}).get("Config") or []:
            try:
                found.append(ipaddress.IPv4Network(config.get("Subnet", "")))
            except ValueError:
                continue  # an IPv6 subnet, or none: cannot overlap with ours
    return found


def free_subnets(pool: Subnet, used: list[Subnet], *, start: str) -> Iterator[Subnet]:
    """Subnets that overlap with no used one, from a place that depends on the workload: fewer races."""
    size = 2 ** (32 - PREFIX)
    count = pool.num_addresses // size
    offset = int.from_bytes(hashlib.sha256(start.encode()).digest()[:4]) % count
    for number in range(count):
        position = (offset + number) % count
        subnet = Subnet((int(pool.network_address) + position * size, PREFIX))
        if not any(subnet.overlaps(other) for other in used):
            yield subnet
