"""Transfers of images: percent, silence, sharing, and errors in plain words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from remotegpu.types.environments import Reason
from remotegpu_agent.docker_client import EngineError
from remotegpu_agent.image_pull import LayerProgress, Puller, pull_refused
from remotegpu_agent.runtime import StartRefused


def message(layer: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": layer, "status": status, "progressDetail": detail}


class EngineThatPulls:
    """Gives its messages, then waits for ever, fails, or ends."""

    def __init__(self, *messages: dict[str, Any], then: str = "end") -> None:
        self.messages, self.then = messages, then
        self.pulls = 0
        self.stopped = 0
        self.go_on = asyncio.Event()
        self.told = asyncio.Event()
        """All its messages were taken."""
        self.ended = asyncio.Event()

    async def pull(self, reference: str) -> AsyncIterator[dict[str, Any]]:
        self.pulls += 1
        try:
            for it in self.messages:
                yield it
            self.told.set()
            if self.then == "hang":
                await self.go_on.wait()
            elif self.then != "end":
                raise EngineError(0, self.then)
        finally:
            self.stopped += 1
            self.ended.set()


def test_percent_is_of_all_bytes_and_never_goes_back() -> None:
    layers = LayerProgress()
    seen = []
    for it in (
        message("a", "Downloading", 50, 100),
        message("b", "Downloading", 0, 300),
        message("b", "Downloading", 150, 300),
        message("a", "Download complete"),
        message("b", "Download complete"),
    ):
        layers.update(it)
        seen.append(layers.percent)
    assert seen == [50, 50, 50, 62, 99]


def test_small_layer_that_comes_first_is_not_the_whole_image() -> None:
    layers = LayerProgress()
    for name in "abcd":
        layers.update(message(name, "Pulling fs layer"))
    layers.update(message("a", "Downloading", 100, 100))
    layers.update(message("a", "Pull complete"))
    assert layers.percent == 25
    layers.update(message("b", "Downloading", 500, 1000))
    assert layers.percent == 37
    layers.update(message("c", "Already exists"))
    layers.update(message("b", "Download complete"))
    assert layers.percent == 75
    layers.update(message("d", "Downloading", 1, 9000))
    assert layers.percent == 75, "the share of the bytes fell: it waits for it"
    layers.update(message("d", "Downloading", 8000, 9000))
    assert layers.percent == 90


def test_retrying_and_repetition_are_no_progress() -> None:
    layers = LayerProgress()
    assert layers.update(message("a", "Downloading", 10, 100))
    assert not layers.update(message("a", "Downloading", 10, 100))
    assert not layers.update(message("a", "Retrying in 5 seconds"))
    assert not layers.update({"status": "Pulling from lab/base"})


async def test_transfer_that_stands_still_is_given_up() -> None:
    engine = EngineThatPulls(message("a", "Downloading", 1, 100), then="hang")
    puller = Puller(engine, no_progress_s=0.05)  # type: ignore[arg-type]
    with pytest.raises(StartRefused) as refused:
        await puller.pull("lab/base:1", lambda percent: None)
    assert refused.value.reason is Reason.IMAGE_PULL_FAILED
    assert "stood still" in refused.value.message
    assert engine.stopped == 1


async def test_two_who_want_one_image_share_its_transfer() -> None:
    engine = EngineThatPulls(message("a", "Downloading", 40, 100), then="hang")
    puller = Puller(engine, no_progress_s=60)  # type: ignore[arg-type]
    told: list[list[int | None]] = [[], []]
    waiting = [asyncio.create_task(puller.pull("lab/base:1", heard.append)) for heard in told]
    await engine.told.wait()
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert engine.stopped == 0, "the other still wants it"
    engine.go_on.set()
    await waiting[1]
    assert engine.pulls == 1
    assert told == [[None, 40], [None, 40]]


async def test_transfer_that_nobody_wants_any_more_is_stopped() -> None:
    engine = EngineThatPulls(message("a", "Downloading", 40, 100), then="hang")
    puller = Puller(engine, no_progress_s=60)  # type: ignore[arg-type]
    waiting = asyncio.create_task(puller.pull("lab/base:1", lambda percent: None))
    await engine.told.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await engine.ended.wait()
    assert engine.stopped == 1


@pytest.mark.parametrize(
    ("engine_says", "reason", "words"),
    [
        ("manifest for lab/base:1 not found: manifest unknown", Reason.IMAGE_NOT_FOUND, "no image"),
        (
            "pull access denied for lab/base, repository does not exist or may require 'docker login'",
            Reason.IMAGE_NOT_FOUND,
            "no image",
        ),
        ("Head https://r/v2: unauthorized: authentication required", Reason.IMAGE_PULL_FAILED, "credentials"),
        (
            "Get https://r/v2/: dial tcp 10.0.0.9: i/o timeout",
            Reason.IMAGE_PULL_FAILED,
            "cannot be reached",
        ),
        ("write /var/lib/docker/tmp: no space left on device", Reason.IMAGE_PULL_FAILED, "disk of this host"),
        ("something nobody has seen", Reason.IMAGE_PULL_FAILED, "something nobody has seen"),
    ],
)
def test_refusal_is_sorted_into_what_can_be_done(engine_says: str, reason: Reason, words: str) -> None:
    refused = pull_refused("lab/base:1", engine_says)
    assert refused.reason is reason
    assert words in refused.message
    assert engine_says[:100] in refused.message


async def test_engine_that_fails_during_a_transfer_names_the_reason() -> None:
    engine = EngineThatPulls(message("a", "Downloading", 1, 100), then="manifest unknown")
    with pytest.raises(StartRefused) as refused:
        await Puller(engine, no_progress_s=60).pull("lab/base:1", lambda percent: None)  # type: ignore[arg-type]
    assert refused.value.reason is Reason.IMAGE_NOT_FOUND
