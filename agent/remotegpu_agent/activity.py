"""Is anybody there? Open connections to a workload's servers, and what its notebook server tells of kernels.

Both may be unknowable; ``None`` then, and nobody may conclude that it is unused.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

ASK_S = 2.0
REFUSED_PAUSE_S = 300.0
"""A server that wants a token is not asked again for so long."""
ANSWER_BYTES = 65536
_ESTABLISHED = "01"
_LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def open_connections(pid: int | str, ports: Collection[int], *, loopback: bool) -> int | None:
    """Established TCP connections to ``ports`` in the network namespace of a process.

    ``loopback``: count those from the same machine too. A container's own come from its own programs; a
    process workload's come from the hub's proxy.
    """
    found = 0
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            if table == "tcp6" and Path(f"/proc/{pid}").exists():
                continue  # a kernel without IPv6
            return None
        for line in lines:
            _, local, remote, state, *_ = line.split()
            mine = int(local.rpartition(":")[2], 16) in ports
            near = remote.rpartition(":")[0] in _LOOPBACK
            found += mine and state == _ESTABLISHED and (loopback or not near)
    return found


class Kernels:
    """Asks notebook servers for their last activity, without a token: many refuse."""

    def __init__(self) -> None:
        self._refused_until: dict[str, float] = {}

    async def idle_s(self, servers: Mapping[str, tuple[str, str]]) -> dict[str, float]:
        """Seconds since the last activity by workload; ``servers`` are address and ready path. Those that do
        not tell are left out.
        """
        now = time.monotonic()
        asked = {
            workload_id: server
            for workload_id, server in servers.items()
            if self._refused_until.get(server[0], 0.0) <= now
        }
        answers = await asyncio.gather(*(_last_activity(*server) for server in asked.values()))
        for (address, _), answer in zip(asked.values(), answers, strict=True):
            if answer is None:
                self._refused_until[address] = now + REFUSED_PAUSE_S
        known = {server[0] for server in servers.values()}
        self._refused_until = {key: at for key, at in self._refused_until.items() if key in known}
        wall = datetime.now(UTC)
        return {
            workload_id: max(0.0, (wall - answer).total_seconds())
            for workload_id, answer in zip(asked, answers, strict=True)
            if answer is not None
        }


async def _last_activity(address: str, ready_path: str) -> datetime | None:
    prefix = ready_path.removesuffix("/api") if ready_path.endswith("/api") else ""
    try:
        async with asyncio.timeout(ASK_S):
            body = await _get(address, f"{prefix}/api/status?no_track_activity=1")
        at = datetime.fromisoformat(json.loads(body)["last_activity"])
    except (OSError, TimeoutError, ValueError, KeyError, TypeError):
        return None
    return at if at.tzinfo is not None else None


async def _get(address: str, path: str) -> bytes:
    """The body of a 200; raises ValueError for anything else."""
    url = urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(
            f"GET {path} HTTP/1.0\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode("latin-1")
        )
        answer = await reader.read(ANSWER_BYTES)
        while len(answer) < ANSWER_BYTES and (more := await reader.read(ANSWER_BYTES)):
            answer += more
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(maxsplit=2)[1:2] != [b"200"]:
        raise ValueError("it does not tell")
    return body
