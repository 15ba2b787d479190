"""What `submit` and `attach` answer: a call that runs elsewhere, whether or not this process lives."""

from __future__ import annotations

import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from contextlib import closing
from typing import Any, Generic, TypeVar

from remotegpu._remote.answers import Answer, Output
from remotegpu._remote.entry import MOST, RAISED, RESULT
from remotegpu._sync.client import Client
from remotegpu.errors import ResultTooLarge, WaitFailed, WaitTimeout
from remotegpu.types.tasks import Task, TaskStatus

RETURNED = TypeVar("RETURNED")
ENDED = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMED_OUT})
FOREVER_S = 366 * 86400.0
TAIL_BYTES = 2 * MOST
"""Enough for the largest result in base64."""


class RemoteFuture(Generic[RETURNED]):
    """A call that runs as a task. Its `task_id` is all that :func:`remotegpu.attach` needs."""

    def __init__(self, client: Client, task_id: str, nonce: str) -> None:
        self._client = client
        self.task_id = task_id
        self._nonce = nonce
        self._followed = Output(nonce)
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._ended: Task | None = None
        self._watcher: threading.Thread | None = None
        self._loaded: tuple[Any] | None = None
        self._callbacks: list[Callable[[RemoteFuture[RETURNED]], object]] = []

    def __repr__(self) -> str:
        return f"<RemoteFuture {self.task_id}{f' {self._ended.status}' if self._ended else ''}>"

    def task(self) -> Task:
        """The task as it is now: status, progress, place in the queue."""
        return self._ended if self._ended is not None else self._see(self._client.tasks.get(self.task_id))

    def done(self) -> bool:
        """It has ended, however that was."""
        return self.task().status in ENDED

    def running(self) -> bool:
        """It runs on a host."""
        return self.task().status == TaskStatus.RUNNING

    def cancelled(self) -> bool:
        """It was stopped before its end."""
        return self.task().status == TaskStatus.CANCELLED

    def cancel(self) -> bool:
        """Stop it, also when it runs already; False when it had ended. Its end takes a moment to come."""
        return self.done() is False and self._client.tasks.stop(self.task_id).status not in ENDED - {
            TaskStatus.CANCELLED
        }

    def result(self, timeout: float | None = None) -> RETURNED:
        """What the call returned; an exception of the call is raised here, with its own traceback as the
        cause. `timeout` in seconds.

        :raises WaitTimeout: it goes on. :raises concurrent.futures.CancelledError: it was stopped.
        :raises WaitFailed: it ended without a result: lost, out of memory, timed out; says so.
        :raises ResultTooLarge: it was larger than what is kept of a task's files, or these are gone.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        assert self._answer is not None
        value: RETURNED = self._answer.value() if self._answer.file is None else self._from_file()
        return value

    def exception(self, timeout: float | None = None) -> Exception | None:
        """The exception of the call, or ``None`` when it returned. `timeout` and errors as for `result`."""
        task = self._wait(timeout)
        answer = self._fetched(task)
        if answer is None:
            raise self._without_result(task)
        return answer.error()

    def unsent(self) -> dict[str, str]:
        """Of a cell that has ended: the names that could not travel back, with the reason."""
        return self._answer.left if self._answer is not None and self._answer.error() is None else {}

    def output(self) -> Generator[str, None, None]:
        """What it writes, in pieces as they come, until it has ended."""
        output = Output(self._nonce)
        with closing(self._client.tasks.follow_logs(self.task_id)) as pieces:
            for piece in pieces:
                if shown := output.shown(piece):
                    yield shown
        if rest := output.rest():
            yield rest
        self._followed = output

    def add_done_callback(self, function: Callable[[RemoteFuture[RETURNED]], object]) -> None:
        """Call `function` with this, in a thread, once it has ended; at once when it has."""
        with self._lock:
            if self._watcher is None or self._watcher.is_alive():
                self._callbacks.append(function)
                if self._watcher is None:
                    self._watcher = threading.Thread(target=self._watch, name=self.task_id, daemon=True)
                    self._watcher.start()
                return
        function(self)

    def _watch(self) -> None:
        self._wait(None)
        while True:
            with self._lock:
                if not self._callbacks:
                    self._watcher = (
                        threading.Thread()
                    )  # one that is not alive: whoever comes now is called at once
                    return
                function = self._callbacks.pop(0)
            try:
                function(self)
            except Exception:  # noqa: BLE001  as concurrent.futures: one callback does not spoil the next
                sys.excepthook(*sys.exc_info())

    def _wait(self, timeout: float | None) -> Task:
        if self._ended is not None:
            return self._ended
        timeout_s = FOREVER_S if timeout is None else timeout
        started = time.monotonic()
        task = self._see(self._client.tasks.wait(self.task_id, timeout_s=timeout_s, progress=False))
        if task.status not in ENDED:
            raise WaitTimeout(f"Not within {time.monotonic() - started:g} s, and it goes on.")
        return task

    def _see(self, task: Task) -> Task:
        if task.status in ENDED:
            self._ended = task
        return task

    def _fetched(self, task: Task) -> Answer | None:
        """The result. Nothing is unpickled of a task that ended otherwise than our own program ends one."""
        succeeded = task.status == TaskStatus.SUCCEEDED
        raised = task.status == TaskStatus.FAILED and task.exit_code == RAISED
        if self._answer is None and (succeeded or raised):
            found = self._followed.answer() or self._read_again(task).answer()
            if found is not None and found.returned == succeeded:  # else: of an earlier attempt
                self._answer = found
        return self._answer

    def _from_file(self) -> RETURNED:
        """The value that was too large for the output. Only the file is loaded whose checksum the output told
        in a line with the nonce: that is the one which our own program has written.
        """
        assert self._answer is not None
        assert self._answer.file is not None
        assert self._ended is not None
        if self._loaded is None:
            sha256, size = self._answer.file
            found = self._client.tasks.artifacts(self.task_id, attempt=self._ended.attempt, path=RESULT)
            artifact = next((one for one in found if one.sha256 == sha256), None)
            if artifact is None:
                raise ResultTooLarge(
                    f"The result has {size:,} bytes and was not kept, or is gone: a task's files have limits "
                    "(tasks.artifacts_max_bytes, tasks.outputs_keep_s). Return less, or write it to a volume."
                )
            with tempfile.TemporaryDirectory(prefix="remotegpu-") as folder:
                path = self._client.tasks.download_artifact(artifact, folder)
                with path.open("rb") as file:
                    self._loaded = (pickle.load(file),)
        value: RETURNED = self._loaded[0]
        return value

    def _read_again(self, task: Task) -> Output:
        output = Output(self._nonce)
        found = self._client.tasks.follow_logs(self.task_id, attempt=task.attempt, tail_bytes=TAIL_BYTES)
        with closing(found) as pieces:
            for piece in pieces:
                output.shown(piece)
        return output

    def _without_result(self, task: Task) -> BaseException:
        said = f"Task {self.task_id} is {task.status} ({task.reason}): {task.message}"
        if task.status == TaskStatus.CANCELLED:
            return CancelledError(said)
        tail = self._client.tasks.logs(self.task_id, tail_bytes=4096).text if task.attempt else ""
        if task.status == TaskStatus.SUCCEEDED:
            said = (
                f"Task {self.task_id} succeeded, but its result is not in its output: cut off at the limit?"
            )
        output = Output()
        shown = output.shown(tail) + output.rest()
        text = f"{said}\nIts last output:\n{shown.rstrip()}" if shown.strip() else said
        return WaitFailed(text, reason=str(task.reason), log_tail=shown)


def follow(future: RemoteFuture[Any]) -> None:
    """Print what it writes until it has ended; an interrupt leaves it running, and says how to come back."""
    try:
        for piece in future.output():
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print_way_back(future.task_id)
        raise


def print_way_back(task_id: str) -> None:
    """Where a task is found again."""
    sys.stderr.write(
        f"\nTask {task_id} goes on. remotegpu.attach({task_id!r}) comes back to it; "
        f"`remotegpu task stop {task_id}` ends it.\n"
    )
