"""Image transfers: percent, a bound on silence, one transfer for many waiters, errors in plain words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from remotegpu.types.environments import Reason
from remotegpu_agent.docker_client import Engine, EngineError
from remotegpu_agent.runtime import Progress, StartRefused

log = logging.getLogger(__name__)


class LayerProgress:
    """Percent over all layers; never goes back, though the engine tells sizes of layers one by one."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._layers: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()
        self.percent: int | None = None

    def update(self, message: dict[str, Any]) -> bool:
        """Whether this message is progress. "Retrying in 5 seconds" is not."""
        status, layer = str(message.get("status", "")), message.get("id")
        if status == "Pulling fs layer" and layer is not None:
            self._named.add(layer)
            return True
        if status.startswith(("Retrying", "Waiting")) or layer is None:
            return False
        before = (self._layers.get(layer), layer in self._done)
        detail = message.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        elif status in ("Download complete", "Pull complete", "Already exists"):
            self._done.add(layer)
            if layer in self._layers:
                total = self._layers[layer][1]
                self._layers[layer] = (total, total)
        self._recompute()
        return before != (self._layers.get(layer), layer in self._done) or status == "Extracting"

    def _recompute(self) -> None:
        """The smaller of two shares: of the bytes that are known, and of the layers.

        Sizes come with the first bytes of a layer, so at first the bytes may be those of one small layer.
        """
        total = sum(size for _, size in self._layers.values())
        if total:
            of_bytes = sum(current for current, _ in self._layers.values()) / total
            known = sum(current / size for current, size in self._layers.values())
            unsized = self._named - self._layers.keys()
            of_layers = (known + len(unsized & self._done)) / (len(self._layers) + len(unsized))
            self.percent = max(self.percent or 0, min(99, int(100 * min(of_bytes, of_layers))))


class Puller:
    """Transfers by reference; those who want the same one share it, and the last to leave cancels it."""

    def __init__(self, engine: Engine, *, no_progress_s: float) -> None:
        """A transfer that moves nothing for ``no_progress_s`` is given up."""
        self._engine = engine
        self._no_progress_s = no_progress_s
        self._running: dict[str, _Transfer] = {}

    async def pull(self, reference: str, progress: Progress) -> None:
        transfer = self._running.get(reference)
        if transfer is None:
            transfer = _Transfer(lambda tell: self._transfer(reference, tell))
            self._running[reference] = transfer
            transfer.task.add_done_callback(lambda _: self._running.pop(reference, None))
        await transfer.join(progress)

    async def _transfer(self, reference: str, tell: Progress) -> None:
        layers = LayerProgress()
        messages = self._engine.pull(reference)
        log.info("pulling %s", reference)
        try:
            async with asyncio.timeout(self._no_progress_s) as limit:
                async for message in messages:
                    if layers.update(message):
                        limit.reschedule(asyncio.get_running_loop().time() + self._no_progress_s)
                        tell(layers.percent)
        except TimeoutError:
            raise StartRefused(
                Reason.IMAGE_PULL_FAILED,
                f"The transfer of {reference} stood still for {self._no_progress_s:.0f} s. "
                "Check the connection to the registry.",
            ) from None
        except EngineError as error:
            raise pull_refused(reference, error.message) from error
        finally:
            await messages.aclose()  # type: ignore[attr-defined]


class _Transfer:
    def __init__(self, run: Callable[[Progress], Awaitable[None]]) -> None:
        self._listeners: list[Progress] = []
        self._percent: int | None = None
        self.task: asyncio.Task[None] = asyncio.ensure_future(self._run(run))

    async def _run(self, run: Callable[[Progress], Awaitable[None]]) -> None:
        await run(self._tell)

    def _tell(self, percent: int | None) -> None:
        self._percent = percent
        for listener in self._listeners:
            listener(percent)

    async def join(self, progress: Progress) -> None:
        progress(self._percent)
        self._listeners.append(progress)
        try:
            await asyncio.shield(self.task)
        finally:
            self._listeners.remove(progress)
            if not self._listeners and not self.task.done():
                self.task.cancel()


_CLASSES: list[tuple[tuple[str, ...], Reason, str]] = [
    (
        ("no space left", "disk quota"),
        Reason.IMAGE_PULL_FAILED,
        "The disk of this host is full: {reference} does not fit. An admin must free space.",
    ),
    (
        ("manifest unknown", "not found", "repository does not exist", "pull access denied", "no such image"),
        Reason.IMAGE_NOT_FOUND,
        "There is no image {reference}: the registry does not know it.",
    ),
    (
        ("unauthorized", "authentication required", "denied: requested access", "no basic auth"),
        Reason.IMAGE_PULL_FAILED,
        "The registry refuses {reference} to this host: it needs credentials.",
    ),
    (
        ("dial tcp", "no such host", "i/o timeout", "connection refused", "network is unreachable",
         "tls", "eof", "timeout", "request canceled", "server misbehaving"),
        Reason.IMAGE_PULL_FAILED,
        "The registry of {reference} cannot be reached from this host.",
    ),
]  # fmt: skip


def pull_refused(reference: str, engine_says: str) -> StartRefused:
    """The engine's words, sorted into what a person can do about them."""
    text = engine_says.lower()
    for signs, reason, message in _CLASSES:
        if any(sign in text for sign in signs):
            return StartRefused(
                reason, f"{message.format(reference=reference)} (Engine: {engine_says[:300]})"
            )
    return StartRefused(
        Reason.IMAGE_PULL_FAILED, f"{reference} could not be pulled. Engine: {engine_says[:300]}"
    )
