"""Requests to addresses that users named: the one way out, which leads to no private network.

The name is resolved once, every address is checked, and the connection goes to the address that was checked,
so a name that changes its mind in between gains nothing. Redirects are not followed, proxies of the
environment are not used, and of the answer no more than its status is kept.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 10.0
ANSWER_BYTES = 64 * 1024
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RESOLVER = ThreadPoolExecutor(64, thread_name_prefix="egress-resolver")
"""Names that users chose are looked up here: slow ones take no thread from anything else."""


class EgressRefused(Exception):
    """The target is none that the server may go to; the text says why."""


def parse_networks(text: str) -> list[Network]:
    """Networks of a setting: CIDR, comma separated. Raises ``ValueError``."""
    return [ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()]


def check_url(url: str, allowed: Sequence[Network]) -> None:
    """What can be said of a URL before its name is resolved. Raises :class:`EgressRefused`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise EgressRefused("it is no URL") from error
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise EgressRefused("it must be an https:// URL with a host")
    if parts.scheme == "http" and not allowed:
        raise EgressRefused("it must be https://; http:// is for networks that an admin has allowed")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise EgressRefused("it must hold no user, password or fragment")
    if port == 0:
        raise EgressRefused("its port must be 1 to 65535")
    try:
        parts.hostname.encode("idna")
        _ = httpx.URL(url).host
    except (ValueError, httpx.InvalidURL) as error:
        raise EgressRefused("its host is no name that can be looked up") from error
    try:
        literal = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return
    _require_reachable(literal, parts.scheme, allowed)


async def post(url: str, *, body: bytes, headers: Mapping[str, str], allowed: Sequence[Network]) -> int:
    """The status of the answer. Raises :class:`EgressRefused`, ``httpx.HTTPError``, ``OSError`` (a name that
    is not known) and ``TimeoutError``.
    """
    async with asyncio.timeout(TIMEOUT_S):
        check_url(url, allowed)
        target = httpx.URL(url)
        address = await _resolve(target, allowed)
        pinned = target.copy_with(host=str(address))
        request_headers = {**headers, "Host": target.netloc.decode()}
        async with (
            httpx.AsyncClient(
                verify=ssl.create_default_context(),
                timeout=TIMEOUT_S,
                trust_env=False,
                follow_redirects=False,
            ) as client,
            client.stream(
                "POST",
                pinned,
                content=body,
                headers=request_headers,
                extensions={"sni_hostname": target.host},
            ) as answer,
        ):
            read = 0
            async for chunk in answer.aiter_raw():
                read += len(chunk)
                if read > ANSWER_BYTES:
                    break
            return answer.status_code


async def _resolve(target: httpx.URL, allowed: Sequence[Network]) -> Address:
    """The first address of a name all of whose addresses may be reached."""
    port = target.port or (443 if target.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    look_up = functools.partial(socket.getaddrinfo, target.host, port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(_RESOLVER, look_up)
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    for address in addresses:
        _require_reachable(address, target.scheme, allowed)
    return addresses[0]


def _require_reachable(address: Address, scheme: str, allowed: Sequence[Network]) -> None:
    real = _unwrapped(address)
    if any(real.version == network.version and real in network for network in allowed):
        return
    if scheme != "https":
        raise EgressRefused("it must be https://; http:// is for networks that an admin has allowed")
    site_local = isinstance(real, ipaddress.IPv6Address) and real.is_site_local
    if not real.is_global or real.is_multicast or real.is_reserved or site_local:
        raise EgressRefused(
            f"{address} is no public address; an admin can allow its network (webhooks.allowed_networks)"
        )


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, so that none hides in another."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
