"""What the agent keeps of one attempt, over its own death: one folder each, removed with its release.

Only a result is written through to the disk. Everything else must survive a kill of the agent, not a loss of
power: after that nothing runs any more, and the boot id in ``started`` tells so.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import struct
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remotegpu.types.agent import AttemptResult, ClaimedAttempt
from remotegpu_agent.inventory import boot_id
from remotegpu_agent.settings import write_private

log = logging.getLogger(__name__)

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")
_REMOVING = ".removing-"
_PIECE = struct.Struct("<QII")


def boottime() -> float:
    """Seconds since the machine started, sleep included: no change of the clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Started:
    """When its start was begun. Once this exists, it is never started again."""

    boot_id: str
    at_s: float

    @property
    def this_boot(self) -> bool:
        return self.boot_id == boot_id()


@dataclass(frozen=True)
class Stop:
    """Why it is being ended, and since when (:func:`boottime`)."""

    why: str
    """``cancelled``, ``timeout``, ``fenced`` or ``refused``."""
    reason: str | None
    at_s: float
    grace_s: float


@dataclass(frozen=True)
class Piece:
    """One numbered piece of output: a part of the file ``log``."""

    offset: int
    size: int
    truncated: bool


class Folder:
    """Files of one attempt."""

    def __init__(self, root: Path, attempt_id: str) -> None:
        if not _ID.match(attempt_id):
            raise ValueError(f"not an attempt id: {attempt_id[:100]!r}")
        self.attempt_id = attempt_id
        self.path = root / attempt_id
        self.log = self.path / "log"
        self.output = self.path / "output"
        """Seen inside as ``/output``."""
        self.said = self.path / "said"
        """The task writes here; holds the progress file."""
        self.progress = self.said / "progress"
        self.script = self.path / "script"
        self.input = self.path / "input"
        """There only once it is whole and right."""
        self._exit = self.path / "exit"

    def store(self, spec: ClaimedAttempt) -> None:
        """Remember it before it is accepted."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write("attempt.json", spec.model_dump_json())

    def forget_secrets(self, spec: ClaimedAttempt) -> None:
        """Nothing is ever started again, so nobody needs them any more."""
        self._note("attempt.json", spec.model_copy(update={"secret_env": {}}).model_dump_json())

    def load(self) -> ClaimedAttempt | None:
        """``None``: it was never stored, or is damaged."""
        try:
            return ClaimedAttempt.model_validate_json((self.path / "attempt.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def prepare(self, spec: ClaimedAttempt) -> None:
        """The files that a start needs. The folders are open to all; their parent is not."""
        for folder in (self.output, self.said):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        self.log.touch()
        self.log.chmod(0o666)
        self._exit.write_text(" " * 16)  # written over in place, which works on a full disk too
        if spec.script is not None:
            self.script.unlink(missing_ok=True)
            self.script.write_text(spec.script)
            self.script.chmod(0o555)

    def mark_started(self) -> Started:
        started = Started(boot_id=boot_id(), at_s=boottime())
        self._write("started", json.dumps(asdict(started)))
        return started

    def started(self) -> Started | None:
        found = self._read("started")
        return None if found is None else Started(**found)

    def put_stop(self, stop: Stop) -> None:
        self._note("stop", json.dumps(asdict(stop)))

    def stop(self) -> Stop | None:
        found = self._read("stop")
        return None if found is None else Stop(**found)

    def exit_code(self) -> int | None:
        """What the shell of a process noted; ``None``: nothing yet, or it was killed before."""
        try:
            return int(self._exit.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def put_process(self, **facts: Any) -> None:
        """What identifies its process; the process runtime's alone."""
        self._write("process", json.dumps(facts))

    def process(self) -> dict[str, Any] | None:
        return self._read("process")

    def put_lease(self, facts: dict[str, Any]) -> None:
        """Read by the guard."""
        self._note("lease", json.dumps(facts | {"boot_id": boot_id()}))

    def lease(self) -> dict[str, Any] | None:
        return self._read("lease")

    def put_result(self, result: AttemptResult) -> None:
        """To the disk: from now on it is repeated until the server has it. Raises OSError."""
        write_private(self.path / "result", result.model_dump_json())
        (self.path / "lease").unlink(missing_ok=True)

    def result(self) -> AttemptResult | None:
        try:
            return AttemptResult.model_validate_json((self.path / "result").read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def put_piece(self, sequence: int, piece: Piece) -> None:
        """Before it is sent: a repeat after a crash must have the same bytes. Raises OSError."""
        handle = os.open(self.path / "pieces", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, _PIECE.pack(piece.offset, piece.size, piece.truncated), _PIECE.size * sequence)
        finally:
            os.close(handle)

    def piece(self, sequence: int) -> Piece | None:
        try:
            with (self.path / "pieces").open("rb") as file:
                file.seek(_PIECE.size * sequence)
                packed = file.read(_PIECE.size)
        except FileNotFoundError:
            return None
        if len(packed) < _PIECE.size:
            return None
        offset, size, truncated = _PIECE.unpack(packed)
        return Piece(offset, size, bool(truncated))

    def pieces(self) -> int:
        """How many were begun to be sent."""
        try:
            return (self.path / "pieces").stat().st_size // _PIECE.size
        except FileNotFoundError:
            return 0

    def remove(self) -> None:
        """It is gone at once; what cannot be deleted now is tried again at the next start. Raises OSError."""
        doomed = self.path.with_name(f"{_REMOVING}{self.attempt_id}")
        _delete(doomed)
        with suppress(FileNotFoundError):
            self.path.rename(doomed)
        _delete(doomed)

    def _note(self, name: str, text: str) -> None:
        """What one can go on without, should the disk be full."""
        try:
            self._write(name, text)
        except OSError as error:
            log.warning("attempt %s: %s cannot be written: %s", self.attempt_id, name, error)

    def _write(self, name: str, text: str) -> None:
        write_private(self.path / name, text, durable=False)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def remove_leftovers(root: Path) -> None:
    """Of folders that were being removed when their agent ended, or could not be."""
    with suppress(FileNotFoundError):
        for name in os.listdir(root):
            if name.startswith(_REMOVING):
                _delete(root / name)


def _delete(folder: Path) -> None:
    """With folders that their task has closed."""
    try:
        try:
            shutil.rmtree(folder)
        except PermissionError:
            _open_up(folder)
            shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        log.error("%s stays until the next start: %s", folder, error)


def _open_up(folder: Path) -> None:
    """Nothing that could put a link in the way runs any more."""
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        os.chmod(place, 0o700)
        with os.scandir(place) as entries:
            waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def stored(root: Path) -> list[Folder]:
    """The folders of all attempts that have not been released."""
    if not root.is_dir():
        return []
    return [Folder(root, name) for name in sorted(os.listdir(root)) if _ID.match(name)]
