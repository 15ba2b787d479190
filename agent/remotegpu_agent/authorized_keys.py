"""The keys that open a workload: one folder each, mounted read-only, whose one file is replaced at once.

The folder is mounted and not the file, because a replaced file would stay the old one in the container.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

FILE = "authorized_keys"
_WORKLOAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class KeyFolders:
    """All folders of a host, below its state directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, workload_id: str) -> Path:
        """Made where it is new. Raises ValueError for an id that is none."""
        if not _WORKLOAD_ID.fullmatch(workload_id):
            raise ValueError(f"not a workload id: {workload_id!r}")
        folder = self._root / workload_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        return folder

    def write(self, workload_id: str, lines: Sequence[str]) -> None:
        """Let exactly these keys in. Readable by the container's user: public keys are no secret."""
        if not lines and not (self._root / workload_id).exists():
            return
        path = self.folder(workload_id) / FILE
        text = "".join(f"{line}\n" for line in lines)
        try:
            if path.read_text() == text:
                return
        except FileNotFoundError:
            pass
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                os.fchmod(handle, 0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def forget(self, workload_id: str) -> None:
        """The workload is gone, so are its keys."""
        shutil.rmtree(self.folder(workload_id))
