"""Files that come and go: what there is of a download survives the program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from remotegpu.errors import UnexpectedAnswer

_BLOCK = 2**20


def target_of(to: str | Path, *, path: str) -> Path:
    """Where the file `path` of a task goes: into a folder under its last name, or to that name."""
    target = Path(to)
    return target / PurePosixPath(path).name if target.is_dir() else target


@contextmanager
def opened(file: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """What is to be sent: the file of this name, or one that is open, which stays so."""
    if not isinstance(file, str | Path):
        yield file
        return
    with Path(file).open("rb") as source:
        yield source


class Partial:
    """`<target>.<start of the checksum>.part`, until it is complete and right."""

    def __init__(self, target: Path, *, sha256: str) -> None:
        self.target = target
        self._sha256 = sha256
        self._part = target.with_name(f"{target.name}.{sha256[:12]}.part")
        self._digest = hashlib.sha256()
        self.received_bytes = 0
        self._file = self._part.open("a+b")
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            self._count(block)

    def _count(self, block: bytes) -> None:
        self._digest.update(block)
        self.received_bytes += len(block)

    def write(self, block: bytes) -> None:
        """The next bytes."""
        self._file.write(block)
        self._count(block)

    def restart(self) -> None:
        """Forget what there is."""
        self._file.truncate(0)
        self._digest, self.received_bytes = hashlib.sha256(), 0

    def close(self) -> None:
        """Keep what there is, for the next try."""
        self._file.close()

    def finish(self) -> Path:
        """Put it in its place. :raises UnexpectedAnswer: its checksum is wrong; nothing is kept."""
        self._file.close()
        if self._digest.hexdigest() != self._sha256:
            self._part.unlink()
            raise UnexpectedAnswer(f"What arrived for {self.target.name} has a wrong checksum; try again.")
        self._part.replace(self.target)
        return self.target
