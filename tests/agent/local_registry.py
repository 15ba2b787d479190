"""A real registry on loopback, and a wire to it that can be made slow or go silent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
from agent_process import docker

_CONFIGURATION = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {folder}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_CHUNK = 16_384


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Registry:
    """``docker-registry`` in a process of its own. The engine takes 127.0.0.0/8 without TLS."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.port = free_port()
        configuration = folder / "config.yml"
        configuration.write_text(_CONFIGURATION.format(folder=folder / "data", port=self.port))
        self._log = folder / "registry.log"
        with self._log.open("wb") as log:
            program = shutil.which("docker-registry") or "docker-registry"
            self._process = subprocess.Popen(
                [program, "serve", str(configuration)], stdout=log, stderr=log, env={"PATH": os.defpath}
            )
        self._await_answer()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/v2/", timeout=2).is_success:
                    return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._folder / "data")

    def push(self, folder: Path, name: str, *, content: str, megabytes: list[int]) -> str:
        """Build an image with one layer of noise for each size, push it, and leave none of it on the engine.

        Its ``/env/CONTENT`` tells which content it is. Answers the digest that the registry gave it.
        """
        lines = ["FROM scratch", "COPY server /server", "COPY home /home", "COPY tmp /tmp"]
        for number, size in enumerate(megabytes):
            (folder / f"noise{number}").write_bytes(os.urandom(size * 2**20))
            lines.append(f"COPY noise{number} /noise{number}")
        lines += [f"ENV CONTENT={content}", 'CMD ["/server"]']
        (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
        reference = f"127.0.0.1:{self.port}/{name}"
        docker("build", "-q", "--no-cache", "-t", reference, str(folder))
        docker("push", "-q", reference)
        pinned = docker("image", "inspect", "-f", "{{index .RepoDigests 0}}", reference)
        docker("image", "rm", "-f", reference)
        for number, _ in enumerate(megabytes):
            (folder / f"noise{number}").unlink()
        return pinned.partition("@")[2]


class Wire:
    """A proxy in front of the registry, so that the way to it can be bad.

    ``bytes_per_s`` bounds what all connections carry together; after ``silent_after`` bytes nothing more
    comes through, and nothing is closed.
    """

    def __init__(self, registry_port: int) -> None:
        self._registry_port = registry_port
        self.bytes_per_s: float | None = None
        self.silent_after: int | None = None
        self.carried = 0
        self.open_connections = 0
        self._next_free = 0.0
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="wire")
        self._thread.start()
        assert started.wait(10)

    def image(self, name: str) -> str:
        """The reference under which the engine pulls through this wire."""
        return f"127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._stopping = asyncio.Event()
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        started.set()
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        beyond_reader, beyond_writer = await asyncio.open_connection("127.0.0.1", self._registry_port)
        both = [
            asyncio.ensure_future(self._carry(reader, beyond_writer, limited=False)),
            asyncio.ensure_future(self._carry(beyond_reader, writer, limited=True)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in both:
                way.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for end in (writer, beyond_writer):
                end.close()
            self.open_connections -= 1

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if limited:
                    await self._pace(len(data))
                target.write(data)
                await target.drain()

    async def _pace(self, size: int) -> None:
        if self.silent_after is not None and self.carried >= self.silent_after:
            await self._stopping.wait()
        self.carried += size
        if self.bytes_per_s is not None:
            now = self._loop.time()
            self._next_free = max(now, self._next_free) + size / self.bytes_per_s
            await asyncio.sleep(self._next_free - now)
