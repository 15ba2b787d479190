"""What is uploaded of ``/output``, and what is not even read."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import cast

import pytest

from remotegpu.types.agent import ArtifactReply
from remotegpu_agent.tasks import artifacts
from remotegpu_agent.tasks.link import Link, Refused


class KeptFiles:
    """A link whose server takes every file at once."""

    def __init__(self) -> None:
        self.refused = asyncio.Event()
        self.found: dict[str, str] = {}

    async def artifact(
        self, *, path: str, size_bytes: int, sha256: str, offset: int, data: bytes
    ) -> ArtifactReply:
        self.found[path] = sha256
        return ArtifactReply(received_bytes=size_bytes, complete=True)


def upload(folder: Path, *, max_bytes: int) -> dict[str, str]:
    kept = KeptFiles()
    asyncio.run(artifacts.upload(folder, cast("Link", kept), max_bytes=max_bytes))
    return kept.found


def test_file_over_the_cap_is_left_out_unread_and_the_others_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(2**43)
    (tmp_path / "a").write_bytes(b"x" * 60)
    (tmp_path / "b").write_bytes(b"x" * 60)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c").write_bytes(b"x" * 40)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        found = upload(tmp_path, max_bytes=100)
    assert found == {
        name: hashlib.sha256(b"x" * size).hexdigest() for name, size in (("a", 60), ("deep/c", 40))
    }
    assert time.monotonic() - began < 10
    assert [record.getMessage().split("'")[1] for record in caplog.records] == ["b", "huge"]


def test_list_of_files_stops_at_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_FILES", 5)
    monkeypatch.setattr(artifacts, "MAX_ENTRIES", 20)
    read = 0
    real = os.scandir

    class Counted:
        def __init__(self, place: str) -> None:
            self._entries = real(place)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def __iter__(self) -> Counted:
            return self

        def __next__(self) -> os.DirEntry[str]:
            nonlocal read
            read += 1
            return next(self._entries)

    monkeypatch.setattr(os, "scandir", Counted)
    for number in range(50):
        (tmp_path / f"file-{number}").touch()
    assert len(upload(tmp_path, max_bytes=0)) == 5
    assert read <= 7
    for entry in list(tmp_path.iterdir()):
        entry.unlink()
    for number in range(50):
        (tmp_path / f"link-{number}").symlink_to("/etc/passwd")
    read = 0
    assert upload(tmp_path, max_bytes=0) == {}
    assert 20 <= read <= 22


def test_nothing_is_uploaded_of_what_was_never_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert upload(tmp_path / "output", max_bytes=100) == {}
    assert caplog.records == []


@pytest.mark.parametrize("refused", [True, False])
def test_reading_of_a_large_file_stops_with_its_upload(tmp_path: Path, refused: bool) -> None:
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(2**43)

    async def run() -> None:
        kept = KeptFiles()
        work = asyncio.create_task(artifacts.upload(tmp_path, cast("Link", kept), max_bytes=2**44))
        await asyncio.sleep(0.2)
        if refused:
            kept.refused.set()
            with pytest.raises(Refused):
                await work
        else:
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
        assert kept.found == {}

    began = time.monotonic()
    asyncio.run(run())  # waits for its threads
    assert time.monotonic() - began < 10
