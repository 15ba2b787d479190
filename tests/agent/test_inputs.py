"""The file that an attempt reads: fetched in pieces, over breaks, and only when it is right."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import cast

import pytest

from remotegpu.types.agent import AttemptInput
from remotegpu_agent.runtime import StartRefused
from remotegpu_agent.tasks import inputs
from remotegpu_agent.tasks.link import Link

DATA = bytes(range(256))
WANTED = AttemptInput(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))


class Pieces:
    """A link whose server hands out 100 bytes at a time, and breaks off once it has answered so often."""

    def __init__(self, data: bytes, *, answers: int = 100) -> None:
        self.data, self.answers = data, answers
        self.asked: list[int] = []

    async def input(self, offset: int) -> bytes:
        self.asked.append(offset)
        if len(self.asked) > self.answers:
            raise asyncio.CancelledError
        return self.data[offset : offset + 100]


def fetch(target: Path, link: Pieces) -> None:
    asyncio.run(inputs.fetch(WANTED, target, cast("Link", link)))


def test_fetch_that_was_broken_off_goes_on_and_is_not_done_twice(tmp_path: Path) -> None:
    target = tmp_path / "input"
    with pytest.raises(asyncio.CancelledError):
        fetch(target, Pieces(DATA, answers=2))
    assert not target.exists()
    again = Pieces(DATA)
    fetch(target, again)
    assert again.asked == [200]
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (DATA, 0o444)
    third = Pieces(DATA)
    fetch(target, third)
    assert third.asked == []


def test_bytes_that_are_wrong_are_fetched_once_more_and_then_refused(tmp_path: Path) -> None:
    target = tmp_path / "input"
    (tmp_path / "input.part").write_bytes(b"x" * 200)
    good = Pieces(DATA)
    fetch(target, good)
    assert good.asked == [200, 0, 100, 200]
    target.unlink()
    with pytest.raises(StartRefused, match="wrong checksum, twice"):
        fetch(target, Pieces(b"y" * 256))
    with pytest.raises(StartRefused, match="wrong checksum, twice"):
        fetch(target, Pieces(DATA[:150]))
    assert list(tmp_path.iterdir()) == []
