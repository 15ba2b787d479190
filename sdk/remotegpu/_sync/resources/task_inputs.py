# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Inputs of tasks: files that are sent before the tasks that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from remotegpu._partial import opened
from remotegpu._protocol import segment
from remotegpu._sync import output
from remotegpu._sync.resource import SyncResource
from remotegpu.types.tasks import TaskInput, TaskInputRoom

UploadProgress = bool | Callable[[TaskInput], object]


class SyncTaskInputs(SyncResource):
    """Inputs of tasks: files that are sent before the tasks that read them."""

    def room(self) -> TaskInputRoom:
        """How large an input may be, and how much of the caller's is there."""
        return self._transport.call(TaskInputRoom, "GET", "/v1/task-inputs")

    def send(self, sha256: str, *, size_bytes: int, offset: int, data: bytes) -> TaskInput:
        """The next piece of a file, at most 1 MiB; `upload` does it all. Without `data`: how far it is.
        `StateConflict`: what arrived is wrong, send it from the start.
        """
        return self._transport.call(
            TaskInput,
            "PUT",
            f"/v1/task-inputs/{segment(sha256)}",
            params={"size_bytes": size_bytes, "offset": offset},
            body=data,
            headers={"Content-Type": "application/octet-stream"},
        )

    def upload(
        self,
        file: str | Path | BinaryIO,
        *,
        progress: UploadProgress = True,
        give_up_after_s: float = 300.0,
    ) -> TaskInput:
        """Send a file, for `tasks.submit(input_sha256=...)`; the task finds it where `REMOTEGPU_INPUT` says.
        What is there already is not sent again, and what was broken off goes on. It stays until the tasks
        with it have ended, and a while after that. `progress`: a bar in a terminal or notebook, nothing, or
        a function.

        :raises PayloadTooLarge: it is larger than `room` says. :raises Conflict: no room beside the caller's
            other inputs.
        """
        with opened(file) as source:
            return output.upload(self.send, source, progress=progress, give_up_after_s=give_up_after_s)
