"""Hollow agents in a process of their own: each claims, one request after the other, until nothing is left.

Cheap on purpose, since they share the machine with what is measured: one bare HTTP connection an agent. Reads
one line of JSON (port, credentials, workers), then waits for one more line, the start; writes one line.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import uuid
from dataclasses import dataclass, field

import uvloop

REPEAT_S = 0.5
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass
class Seen:
    """What all agents together were given, and how long an answer took."""

    claimed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    requests: int = 0
    repeated: int = 0


class Agent:
    def __init__(self, port: int, credential: str, workers: int, seen: Seen) -> None:
        self._port, self._workers, self._seen = port, workers, seen
        self._head = (
            "POST /v1/agent/tasks/claim HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {credential}\r\nContent-Length: "
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)

    async def claim_all(self) -> None:
        while True:
            request = {
                "epoch": 1,
                "request_id": f"bench-{uuid.uuid4()}",
                "max_attempts": self._workers,
                "wait_s": 0,
            }
            begun = time.perf_counter()
            while (answer := await self._ask(json.dumps(request))) is None:
                self._seen.repeated += 1
                await asyncio.sleep(REPEAT_S)
            found = [one["id"] for one in answer["attempts"]]
            if not found:
                return
            self._seen.seconds.append(time.perf_counter() - begun)
            self._seen.claimed += found

    async def _ask(self, body: str) -> dict[str, list[dict[str, str]]] | None:
        """``None``: no answer, or the server sheds load; an agent repeats the same request."""
        self._seen.requests += 1
        try:
            if self._streams is None:
                await self.connect()
            assert self._streams is not None
            reader, writer = self._streams
            writer.write(f"{self._head}{len(body)}\r\n\r\n{body}".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            assert length is not None, head
            content = await reader.readexactly(int(length[1]))
        except (OSError, asyncio.IncompleteReadError):
            self._streams = None
            return None
        status = int(head[9:12])
        if status == 503:
            return None
        assert status == 200, content.decode()
        answer: dict[str, list[dict[str, str]]] = json.loads(content)
        return answer


async def main() -> None:
    given = json.loads(sys.stdin.readline())
    seen = Seen()
    agents = [Agent(given["port"], secret, given["workers"], seen) for secret in given["credentials"]]
    for agent in agents:
        await agent.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(agent.claim_all() for agent in agents))
    print(
        json.dumps(
            {
                "total_s": time.perf_counter() - begun,
                "cpu_s": time.process_time() - cpu,
                "claimed": seen.claimed,
                "seconds": seen.seconds,
                "requests": seen.requests,
                "repeated": seen.repeated,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
