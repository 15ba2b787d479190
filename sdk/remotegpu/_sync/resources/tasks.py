# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Tasks: commands that run to their end on a host."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from remotegpu._partial import target_of
from remotegpu._protocol import dumped, given, listed, measured, segment
from remotegpu._sync import output, wait
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu._sync.stream import states
from remotegpu.types.metrics import MetricsReport
from remotegpu.types.tasks import (
    Artifact,
    ArtifactDownload,
    Dependency,
    Task,
    TaskArray,
    TaskAttempt,
    TaskLogs,
    TaskSubmitted,
)

Progress = bool | Callable[[Task], object]
DownloadProgress = bool | Callable[[ArtifactDownload], object]


class SyncTasks(SyncResource):
    """Tasks: commands that run to their end on a host."""

    def submit(
        self,
        *,
        image: str,
        command: Sequence[str] | None = None,
        script: str | None = None,
        input_sha256: str | None = None,
        name: str | None = None,
        working_dir: str | None = None,
        env: Mapping[str, str] | None = None,
        gpus: int | None = None,
        gpu_models: Sequence[str] | None = None,
        gpu_memory_bytes: int | None = None,
        min_gpu_memory_bytes: int | None = None,
        max_gpu_memory_bytes: int | None = None,
        mig_profile: str | None = None,
        host_labels: Mapping[str, str] | None = None,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        nodes: int | None = None,
        workspace: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        preemptible: bool | None = None,
        min_run_s: float | None = None,
        start_at: datetime | None = None,
        reservation: str | None = None,
        timeout_s: float | None = None,
        stop_grace_s: float | None = None,
        max_retries: int | None = None,
        retry_delay_s: float | None = None,
        retry_on: Sequence[str] | None = None,
        depends_on: Sequence[Dependency] | None = None,
        array: TaskArray | None = None,
        idempotency_key: str | None = None,
    ) -> TaskSubmitted:
        """Submit a task with a `command` or a `script`, or an `array` of them. It waits in the queue until
        there is room for it. `input_sha256` names a file that `task_inputs.upload` has sent.
        """
        body = given(
            image=image,
            command=listed(command, what="command"),
            script=script,
            input_sha256=input_sha256,
            name=name,
            working_dir=working_dir,
            env=None if env is None else dict(env),
            gpus=gpus,
            gpu_models=listed(gpu_models, what="gpu_models"),
            gpu_memory_bytes=gpu_memory_bytes,
            min_gpu_memory_bytes=min_gpu_memory_bytes,
            max_gpu_memory_bytes=max_gpu_memory_bytes,
            mig_profile=mig_profile,
            host_labels=None if host_labels is None else dict(host_labels),
            cpus=cpus,
            memory_bytes=memory_bytes,
            nodes=nodes,
            workspace=workspace,
            labels=None if labels is None else dict(labels),
            priority=priority,
            preemptible=preemptible,
            min_run_s=min_run_s,
            start_at=None if start_at is None else start_at.isoformat(),
            reservation=reservation,
            timeout_s=timeout_s,
            stop_grace_s=stop_grace_s,
            max_retries=max_retries,
            retry_delay_s=retry_delay_s,
            retry_on=listed(retry_on, what="retry_on"),
            depends_on=None
            if depends_on is None
            else [dumped(one, Dependency, what="depends_on") for one in depends_on],
            array=dumped(array, TaskArray, what="array"),
        )
        return self._transport.create(TaskSubmitted, "/v1/tasks", body=body, idempotency_key=idempotency_key)

    def list(
        self,
        *,
        owner: str | None = None,
        name: str | None = None,
        workspace: str | None = None,
        array: str | None = None,
        labels: Sequence[str] = (),
        status: str | Sequence[str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Task]:
        """The tasks that the caller may see, newest first. `labels` as `key=value`, all of them."""
        params = given(
            owner=owner,
            name=name,
            workspace=workspace,
            array=array,
            label=listed(labels, what="labels") or None,
            status=status,
            limit=limit,
            cursor=cursor,
        )
        return fetch_page(self._transport, Task, "/v1/tasks", params)

    def get(self, task_id: str) -> Task:
        """One task."""
        return self._transport.call(Task, "GET", f"/v1/tasks/{segment(task_id)}")

    def metrics(
        self,
        task_id: str,
        *,
        begin: datetime | None = None,
        end: datetime | None = None,
        step_s: int | None = None,
        metric: Sequence[str] | None = None,
    ) -> MetricsReport:
        """What was measured of a task and of the GPUs that its attempts held.

        Without times: the last hour. ``to_pandas()`` makes it a DataFrame.
        """
        path = f"/v1/tasks/{segment(task_id)}/metrics"
        return self._transport.call(MetricsReport, "GET", path, params=measured(begin, end, step_s, metric))

    def attempts(
        self, task_id: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[TaskAttempt]:
        """The tries of a task, the newest first."""
        path = f"/v1/tasks/{segment(task_id)}/attempts"
        return fetch_page(self._transport, TaskAttempt, path, given(limit=limit, cursor=cursor))

    def stop(self, task_id: str) -> Task:
        """Stop a task: TERM, then KILL after its grace. One that has ended is answered as it is."""
        return self._transport.call(Task, "POST", f"/v1/tasks/{segment(task_id)}:stop")

    def retry(self, task_id: str, *, idempotency_key: str | None = None) -> Task:
        """Run a task once more that failed, was cancelled or timed out."""
        path = f"/v1/tasks/{segment(task_id)}:retry"
        return self._transport.create(Task, path, body=None, idempotency_key=idempotency_key)

    def logs(
        self,
        task_id: str,
        *,
        attempt: int | None = None,
        rank: int | None = None,
        offset: int | None = None,
        limit: int | None = None,
        tail_bytes: int | None = None,
    ) -> TaskLogs:
        """A part of the output of its newest `attempt`, or of the one with this number: from byte `offset`
        on, or the newest `tail_bytes`. At most `limit` bytes, 1 MiB; go on at `next_offset`.
        """
        params = given(attempt=attempt, rank=rank, offset=offset, limit=limit, tail_bytes=tail_bytes)
        return self._transport.call(TaskLogs, "GET", f"/v1/tasks/{segment(task_id)}/logs", params=params)

    def follow_logs(
        self,
        task_id: str,
        *,
        attempt: int | None = None,
        rank: int | None = None,
        tail_bytes: int | None = None,
        give_up_after_s: float = 300.0,
    ) -> Generator[str, None, None]:
        """Its output in pieces as it comes, from the beginning or the newest `tail_bytes` on, until it has
        ended and everything was said; with those of the retries that follow, unless one `attempt` is asked
        for. Waits for a task that has not started. Nothing is lost or doubled by broken connections and
        restarts of the server; when those last longer than `give_up_after_s` seconds, the last error is
        raised.
        """
        pieces = output.followed(
            self._transport,
            f"/v1/tasks/{segment(task_id)}/logs:follow",
            attempt=attempt,
            params=given(rank=rank, tail_bytes=tail_bytes),
            give_up_after_s=give_up_after_s,
        )
        with closing(pieces):
            for piece in pieces:
                yield piece

    def artifacts(
        self,
        task_id: str,
        *,
        attempt: int | None = None,
        rank: int | None = None,
        path: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Artifact]:
        """The files that its attempts left in `/output`, those of the newest attempt first, then by rank."""
        params = given(attempt=attempt, rank=rank, path=path, limit=limit, cursor=cursor)
        return fetch_page(self._transport, Artifact, f"/v1/tasks/{segment(task_id)}/artifacts", params)

    def download_artifact(
        self,
        artifact: Artifact,
        to: str | Path = ".",
        *,
        progress: DownloadProgress = True,
        give_up_after_s: float = 300.0,
    ) -> Path:
        """Fetch a file to `to`, a folder that exists or the name of the new file, and check it; the answer is
        where it is. A download that was broken off goes on where it stopped. `progress`: a bar in a terminal
        or notebook, nothing, or a function.

        :raises UnexpectedAnswer: what arrived has a wrong checksum.
        """
        return output.download(
            self._transport,
            artifact,
            target_of(to, path=artifact.path),
            progress=progress,
            give_up_after_s=give_up_after_s,
        )

    def wait(
        self,
        task_id: str,
        *,
        timeout_s: float = 86400.0,
        check: bool = False,
        progress: Progress = True,
    ) -> Task:
        """The task once it has ended, however that was; see its `status`. `progress`: a line in a terminal or
        notebook, nothing, or a function that is called with the task after every look.

        :raises WaitFailed: with `check`, it ended otherwise than with success; has the last output.
        :raises WaitTimeout: not within `timeout_s` seconds; it goes on.
        """
        task = wait.until_ended(self.get, task_id, timeout_s=timeout_s, progress=progress)
        if check and task.status != "succeeded":
            found = self.logs(task_id, tail_bytes=4096)
            raise wait.task_failed(task, log_tail=found.text)
        return task

    def watch(self, task_id: str, *, give_up_after_s: float = 300.0) -> Generator[Task, None, None]:
        """The task as it is now, and again after every change, until it has ended. Survives broken
        connections and restarts of the server; when those last longer than `give_up_after_s` seconds, the
        last error is raised.
        """
        found = states(
            self._transport,
            lambda: self.get(task_id),
            subject_type="task",
            subject_id=task_id,
            give_up_after_s=give_up_after_s,
        )
        with closing(found):
            for task in found:
                yield task
                if task.status in wait.TASK_ENDED:
                    return
