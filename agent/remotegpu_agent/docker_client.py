"""The only importer of aiodocker: raw Engine JSON in and out, errors in two kinds.

``RuntimeUnavailable``: the engine did not answer, so nothing is known. ``EngineError``: it answered "no".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import aiodocker
import aiohttp
from aiodocker.jsonstream import json_stream_stream

from remotegpu_agent.runtime import RuntimeUnavailable

REQUEST_S = 30.0
"""How long the engine may take for an ordinary request before it counts as silent."""
_NO_CONNECTION = 900
"""aiodocker's status for "could not connect"."""

PIECE_BYTES = 2**18
_ENDLESS = aiohttp.ClientTimeout(total=None)

JSON = dict[str, Any]


class EngineError(Exception):
    """The engine refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Engine:
    """One Docker engine. The connection is made on first use, and again after the engine was away."""

    def __init__(self, docker_host: str | None) -> None:
        self._docker_host = docker_host
        self._docker: aiodocker.Docker | None = None

    async def close(self) -> None:
        if self._docker is not None:
            await self._docker.close()
            self._docker = None

    async def version(self) -> JSON:
        async with self._call() as docker:
            answer: JSON = await docker.version()
            return answer

    async def containers(self, labels: list[str]) -> list[JSON]:
        async with self._call() as docker:
            found = await docker.containers.list(all=True, filters=json.dumps({"label": labels}))
            return [container._container for container in found]

    async def create_container(self, name: str, spec: JSON) -> str:
        async with self._call() as docker:
            container = await docker.containers.create(spec, name=name)
            return str(container.id)

    async def start_container(self, container_id: str) -> None:
        async with self._call(timeout_s=120) as docker:
            await docker.containers.container(container_id).start()

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        """TERM, and KILL after the grace period. One that is gone or stopped already is fine."""
        async with self._call(timeout_s=grace_s + 60) as docker:
            with _gone_is_fine():
                await docker.containers.container(container_id).stop(t=round(grace_s))

    async def signal_container(self, container_id: str, name: str) -> None:
        async with self._call() as docker:
            await docker.containers.container(container_id).kill(signal=name)

    async def wait_container(self, container_id: str) -> None:
        """Until it does not run."""
        docker = self._connect()
        async with (
            _transfer("a wait"),
            docker._query(f"containers/{container_id}/wait", "POST", timeout=_ENDLESS) as response,
        ):
            await response.read()

    async def remove_container(self, container_id: str) -> None:
        async with self._call(timeout_s=60) as docker:
            with _gone_is_fine():
                await docker.containers.container(container_id).delete(force=True, v=True)

    async def inspect_container(self, container_id: str) -> JSON:
        async with self._call() as docker:
            answer: JSON = await docker.containers.container(container_id).show()
            return answer

    async def container_log(self, container_id: str, lines: int) -> str:
        async with self._call() as docker:
            chunks = await docker.containers.container(container_id).log(stdout=True, stderr=True, tail=lines)
            return "".join(chunks)

    async def container_stats(self, container_id: str) -> JSON:
        """One reading without the engine's own second of waiting, which only the raw query offers."""
        async with self._call() as docker:
            answer: JSON = await docker._query_json(
                f"containers/{container_id}/stats", params={"stream": "0", "one-shot": "1"}
            )
            return answer

    async def networks(self, labels: list[str] | None = None) -> list[JSON]:
        async with self._call() as docker:
            answer: list[JSON] = await docker.networks.list(filters={"label": labels} if labels else None)
            return answer

    async def create_network(self, config: JSON) -> str:
        async with self._call() as docker:
            return str((await docker.networks.create(config)).id)

    async def remove_network(self, network_id: str) -> None:
        async with self._call() as docker:
            with _gone_is_fine():
                await aiodocker.networks.DockerNetwork(docker, network_id).delete()

    async def image(self, reference: str) -> JSON | None:
        """``None``: not on this host."""
        async with self._call() as docker:
            try:
                answer: JSON = await docker.images.inspect(reference)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise
            return answer

    async def images(self) -> list[JSON]:
        async with self._call() as docker:
            return list(await docker.images.list())

    async def pull(self, reference: str) -> AsyncIterator[JSON]:
        """Progress messages. Raises EngineError where the registry or the engine gives up.

        Not with aiodocker's own ``images.pull``: closing the connection is all that makes the engine stop a
        transfer, and that leaves it open when the stream is not read to its end.
        """
        untagged = "@" not in reference and ":" not in reference.rpartition("/")[2]
        wanted = {"fromImage": reference} | ({"tag": "latest"} if untagged else {})
        docker = self._connect()
        async with (
            _transfer("a pull"),
            docker._query("images/create", "POST", params=wanted, timeout=_ENDLESS) as response,
        ):
            try:
                async for message in json_stream_stream(response):
                    yield message
            finally:
                response.close()

    @asynccontextmanager
    async def export_container(self, container_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """A container's file system as tar, piece by piece; leaving the context ends it at the engine."""
        docker = self._connect()
        async with (
            _transfer("an export"),
            docker._query(f"containers/{container_id}/export", timeout=_ENDLESS) as response,
        ):
            try:
                yield response.content.iter_chunked(PIECE_BYTES)
            finally:
                response.close()

    async def import_image(
        self, pieces: AsyncIterator[bytes], *, reference: str, changes: list[str], message: str
    ) -> str:
        """Make an image of a tar that is read as the engine takes it, and answer its id."""
        repository, _, tag = reference.partition(":")
        settings = [("fromSrc", "-"), ("repo", repository), ("tag", tag), ("message", message)]
        query = urlencode([*settings, *(("changes", one) for one in changes)], quote_via=quote)
        docker, last = self._connect(), ""
        async with (
            _transfer("an import"),
            docker._query(
                f"images/create?{query}",
                "POST",
                data=pieces,
                chunked=True,
                headers={"Content-Type": "application/x-tar"},
                timeout=_ENDLESS,
            ) as response,
        ):
            async for answer in json_stream_stream(response):
                last = str(answer.get("status", ""))
        if not last.startswith("sha256:"):
            raise EngineError(500, f"the engine did not say which image it made: {last[:200]}")
        return last

    async def remove_image(self, reference: str) -> None:
        async with self._call(timeout_s=60) as docker:
            with _gone_is_fine():
                await docker.images.delete(reference)

    async def events(self, labels: list[str]) -> AsyncIterator[JSON]:
        """Container events until the engine goes away."""
        docker = self._connect()
        filters = json.dumps({"type": ["container"], "label": labels})
        subscriber = docker.events.subscribe(create_task=False)
        stream = asyncio.create_task(docker.events.run(filters=filters), name="docker-events-stream")
        try:
            while (event := await subscriber.get()) is not None:
                yield event
            await stream
        except aiodocker.DockerError as error:
            raise _translated(error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RuntimeUnavailable(f"the Docker engine's event stream broke: {error}") from error
        finally:
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)

    @asynccontextmanager
    async def _call(self, *, timeout_s: float = REQUEST_S) -> AsyncIterator[aiodocker.Docker]:
        try:
            async with asyncio.timeout(timeout_s):
                yield self._connect()
        except aiodocker.DockerError as error:
            raise _translated(error) from error
        except TimeoutError as error:
            raise RuntimeUnavailable(f"the Docker engine did not answer within {timeout_s:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise RuntimeUnavailable(f"no answer from the Docker engine: {error}") from error

    def _connect(self) -> aiodocker.Docker:
        if self._docker is None:
            try:
                self._docker = aiodocker.Docker(url=self._docker_host)
            except (AssertionError, ValueError) as error:  # aiodocker asserts that it found a socket
                raise RuntimeUnavailable("no Docker socket on this host") from error
        return self._docker


@asynccontextmanager
async def _transfer(what: str) -> AsyncIterator[None]:
    """Errors of a request that may take hours."""
    try:
        yield
    except aiodocker.DockerError as error:
        raise _translated(error) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise RuntimeUnavailable(f"the Docker engine went away during {what}: {error}") from error


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """404: it is gone, which is what was asked for. 409: its removal is under way already."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status not in (304, 404) and "already in progress" not in error.message:
            raise


def _translated(error: aiodocker.DockerError) -> Exception:
    if error.status == _NO_CONNECTION:
        return RuntimeUnavailable(error.message)
    return EngineError(error.status, error.message)
