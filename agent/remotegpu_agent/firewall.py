"""iptables rules that keep workloads from this host, from link-local services and from each other.

Two chains of our own, shared by every agent of the machine and never flushed: what runs keeps its rules.
Only `-i rgpu+` (our bridges) is matched, so nothing else on the host is affected.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import shutil
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from remotegpu.types.agent import GANG_PORTS

log = logging.getLogger(__name__)

INPUT, FORWARD = "REMOTEGPU-INPUT", "REMOTEGPU-FORWARD"
_BRIDGES = "rgpu+"
_ESTABLISHED = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
_ENDPOINT_VARIABLES = ("REMOTEGPU_URL", "JUPYTERHUB_API_URL")

_MEETING_PORTS = f"{GANG_PORTS.start}:{GANG_PORTS.stop - 1}"
"""On whatever host: only the ranks of a task reach its rank 0."""

Endpoint = tuple[str, int]


class FirewallError(Exception):
    """iptables refused a rule; the message is its own."""


class Firewall:
    """The rules, or the reason why there are none."""

    def __init__(self) -> None:
        self.problem: str | None = "not set up yet"

    async def set_up(self) -> None:
        """Make the chains and their fixed rules; harmless to repeat. Never raises: see ``problem``."""
        if os.geteuid() != 0 or shutil.which("iptables") is None:
            self.problem = "workloads can reach this host: firewall rules need root and iptables"
            return
        try:
            await self._install()
            self.problem = None
        except FirewallError as error:
            self.problem = f"workloads can reach this host: {error}"

    async def allow(self, bridge: str, environment: Mapping[str, str]) -> None:
        """Let one workload reach the endpoints that it was told to use, where they are on this host."""
        if self.problem is not None:
            return
        for address, port in await endpoints(environment):
            await self._ensure(INPUT, _endpoint_rule(bridge, address, port), first=True)

    async def let_meet(self, bridge: str, address: str, port: int) -> None:
        """Let one rank of several, also rank 0, reach the meeting place: on this host or on another one."""
        if self.problem is not None:
            return
        for found in await _resolve(address, port):
            await self._ensure(INPUT, _endpoint_rule(bridge, found, port), first=True)
            await self._ensure(FORWARD, _meeting_rule(bridge, found, port), first=True)

    async def forget(self, bridge: str) -> None:
        """Drop what :meth:`allow` and :meth:`let_meet` added for a bridge that is gone."""
        if self.problem is not None:
            return
        for chain in (INPUT, FORWARD):
            for line in (await _iptables("-S", chain)).splitlines():
                words = line.split()
                if bridge in words and words[0] == "-A":
                    await _iptables("-D", *words[1:])

    async def _install(self) -> None:
        await _iptables("-n", "-L", "DOCKER-USER")  # not there: the engine runs in another network namespace
        for chain in (INPUT, FORWARD):
            try:
                await _iptables("-n", "-L", chain)
            except FirewallError:
                await _iptables("-N", chain)
        await self._ensure(INPUT, (*_ESTABLISHED, "-j", "ACCEPT"))
        for protocol in ("udp", "tcp"):
            await self._ensure(INPUT, ("-p", protocol, "-m", protocol, "--dport", "53", "-j", "ACCEPT"))
        await self._ensure(INPUT, ("-j", "DROP"))
        await self._ensure(FORWARD, (*_ESTABLISHED, "-j", "RETURN"))
        await self._ensure(FORWARD, ("-d", "169.254.0.0/16", "-j", "DROP"))
        await self._ensure(FORWARD, ("-o", _BRIDGES, "-j", "DROP"))
        await self._ensure(FORWARD, ("-p", "tcp", "-m", "tcp", "--dport", _MEETING_PORTS, "-j", "DROP"))
        await self._ensure("INPUT", ("-i", _BRIDGES, "-j", INPUT), first=True)
        await self._ensure("DOCKER-USER", ("-i", _BRIDGES, "-j", FORWARD), first=True)

    async def _ensure(self, chain: str, rule: tuple[str, ...], *, first: bool = False) -> None:
        try:
            await _iptables("-C", chain, *rule)
        except FirewallError:
            await _iptables(*(("-I", chain, "1") if first else ("-A", chain)), *rule)


def _endpoint_rule(bridge: str, address: str, port: int) -> tuple[str, ...]:
    return (
        "-d",
        f"{address}/32",
        "-i",
        bridge,
        "-p",
        "tcp",
        "-m",
        "tcp",
        "--dport",
        str(port),
        "-j",
        "ACCEPT",
    )


def _meeting_rule(bridge: str, address: str, port: int) -> tuple[str, ...]:
    """Both ways, as the connection was asked for: where rank 0 is on this machine, its address is replaced by
    the container's before this rule. ``ACCEPT``, as the engine's own rules keep its networks apart.
    """
    asked_for = ("--ctorigdst", address, "--ctorigdstport", str(port))
    return ("-i", bridge, "-p", "tcp", "-m", "conntrack", *asked_for, "-j", "ACCEPT")


async def endpoints(environment: Mapping[str, str]) -> set[Endpoint]:
    """IPv4 address and port of the server and the hub, as a workload's variables name them."""
    found: set[Endpoint] = set()
    for name in _ENDPOINT_VARIABLES:
        url = urlsplit(environment.get(name, ""))
        if not url.hostname:
            continue
        port = url.port or (443 if url.scheme == "https" else 80)
        for address in await _resolve(url.hostname, port):
            if not ipaddress.ip_address(address).is_loopback:  # the container's own, not this host's
                found.add((address, port))
    return found


async def _resolve(host: str, port: int) -> list[str]:
    try:
        return [str(ipaddress.IPv4Address(host))]
    except ValueError:
        pass
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=socket.AF_INET, type=socket.SOCK_STREAM
        )
    except OSError as error:
        log.warning("cannot resolve %s, so workloads may not reach it: %s", host, error)
        return []
    return [str(answer[4][0]) for answer in answers]


async def _iptables(*words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "iptables",
        "-w",
        "5",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        first_line = errors.decode(errors="replace").strip().splitlines()[:1]
        raise FirewallError(f"iptables {' '.join(words[:2])}: {first_line[0] if first_line else 'failed'}")
    return output.decode(errors="replace")
