"""Environments: interactive containers with a notebook server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime

from remotegpu._async import wait
from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._async.stream import states
from remotegpu._protocol import dumped, given, listed, measured, segment
from remotegpu.types.environments import (
    Environment,
    EnvironmentAccess,
    EnvironmentLogs,
    EnvironmentStatus,
    EnvironmentUsage,
    IdlePolicy,
)
from remotegpu.types.image_saves import ImageSave
from remotegpu.types.metrics import MetricsReport

Progress = bool | Callable[[Environment], object]


class AsyncEnvironments(AsyncResource):
    """Environments: interactive containers with a notebook server."""

    async def list(
        self,
        *,
        owner: str | None = None,
        name: str | None = None,
        workspace: str | None = None,
        status: str | Sequence[str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncPage[Environment]:
        """The environments that the caller may see. `owner` is a user's id or name, `status`
        one or several; deleted ones are listed only when asked for.
        """
        params = given(owner=owner, name=name, workspace=workspace, status=status, limit=limit, cursor=cursor)
        return await fetch_page(self._transport, Environment, "/v1/environments", params)

    async def create(
        self,
        *,
        name: str,
        image: str,
        gpus: int | None = None,
        gpu_models: Sequence[str] | None = None,
        gpu_memory_bytes: int | None = None,
        min_gpu_memory_bytes: int | None = None,
        max_gpu_memory_bytes: int | None = None,
        mig_profile: str | None = None,
        host_labels: Mapping[str, str] | None = None,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        secret_env: Mapping[str, str] | None = None,
        display_name: str | None = None,
        workspace: str | None = None,
        stop_at: datetime | None = None,
        max_lifetime_s: float | None = None,
        idle: IdlePolicy | None = None,
        priority: int | None = None,
        preemptible: bool | None = None,
        min_run_s: float | None = None,
        start_at: datetime | None = None,
        reservation: str | None = None,
        queue: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Environment:
        """Make an environment and start it. ``queue=False`` raises
        :class:`remotegpu.errors.NoCapacity` instead of waiting in line.
        """
        body = given(
            name=name,
            image=image,
            gpus=gpus,
            gpu_models=listed(gpu_models, what="gpu_models"),
            gpu_memory_bytes=gpu_memory_bytes,
            min_gpu_memory_bytes=min_gpu_memory_bytes,
            max_gpu_memory_bytes=max_gpu_memory_bytes,
            mig_profile=mig_profile,
            host_labels=None if host_labels is None else dict(host_labels),
            cpus=cpus,
            memory_bytes=memory_bytes,
            env=None if env is None else dict(env),
            secret_env=None if secret_env is None else dict(secret_env),
            display_name=display_name,
            workspace=workspace,
            stop_at=None if stop_at is None else stop_at.isoformat(),
            max_lifetime_s=max_lifetime_s,
            idle=dumped(idle, IdlePolicy, what="idle"),
            priority=priority,
            preemptible=preemptible,
            min_run_s=min_run_s,
            start_at=None if start_at is None else start_at.isoformat(),
            reservation=reservation,
            queue=queue,
        )
        return await self._transport.create(
            Environment, "/v1/environments", body=body, idempotency_key=idempotency_key
        )

    async def get(self, environment_id: str) -> Environment:
        """One environment."""
        return await self._transport.call(Environment, "GET", f"/v1/environments/{segment(environment_id)}")

    async def metrics(
        self,
        environment_id: str,
        *,
        begin: datetime | None = None,
        end: datetime | None = None,
        step_s: int | None = None,
        metric: Sequence[str] | None = None,
    ) -> MetricsReport:
        """What was measured of an environment and of the GPUs that it held.

        Without times: the last hour. ``to_pandas()`` makes it a DataFrame.
        """
        path = f"/v1/environments/{segment(environment_id)}/metrics"
        return await self._transport.call(
            MetricsReport, "GET", path, params=measured(begin, end, step_s, metric)
        )

    async def start(
        self,
        environment_id: str,
        *,
        image: str | None = None,
        gpus: int | None = None,
        gpu_models: Sequence[str] | None = None,
        gpu_memory_bytes: int | None = None,
        min_gpu_memory_bytes: int | None = None,
        max_gpu_memory_bytes: int | None = None,
        mig_profile: str | None = None,
        host_labels: Mapping[str, str] | None = None,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        secret_env: Mapping[str, str] | None = None,
        stop_at: datetime | None = None,
        max_lifetime_s: float | None = None,
        idle: IdlePolicy | None = None,
        priority: int | None = None,
        preemptible: bool | None = None,
        min_run_s: float | None = None,
        start_at: datetime | None = None,
        reservation: str | None = None,
        queue: bool | None = None,
    ) -> Environment:
        """Start a stopped or failed environment; what is left out keeps its last value. Empty lists
        and texts and 0 take a wish back.
        """
        body = given(
            image=image,
            gpus=gpus,
            gpu_models=listed(gpu_models, what="gpu_models"),
            gpu_memory_bytes=gpu_memory_bytes,
            min_gpu_memory_bytes=min_gpu_memory_bytes,
            max_gpu_memory_bytes=max_gpu_memory_bytes,
            mig_profile=mig_profile,
            host_labels=None if host_labels is None else dict(host_labels),
            cpus=cpus,
            memory_bytes=memory_bytes,
            env=None if env is None else dict(env),
            secret_env=None if secret_env is None else dict(secret_env),
            stop_at=None if stop_at is None else stop_at.isoformat(),
            max_lifetime_s=max_lifetime_s,
            idle=dumped(idle, IdlePolicy, what="idle"),
            priority=priority,
            preemptible=preemptible,
            min_run_s=min_run_s,
            start_at=None if start_at is None else start_at.isoformat(),
            reservation=reservation,
            queue=queue,
        )
        path = f"/v1/environments/{segment(environment_id)}:start"
        return await self._transport.call(Environment, "POST", path, body=body)

    async def keep_place(
        self, environment_id: str, *, hub_user: str, hub_server: str | None = None
    ) -> Environment:
        """Keep a waiting environment's place for a hub server; the hub is asked to start it in its turn."""
        body = given(hub_user=hub_user, hub_server=hub_server)
        path = f"/v1/environments/{segment(environment_id)}:keep-place"
        return await self._transport.call(Environment, "POST", path, body=body)

    async def stop(self, environment_id: str) -> Environment:
        """Ask for a stop; the GPUs are free when the host has confirmed it (:meth:`wait_stopped`)."""
        return await self._transport.put_in_state(
            Environment, f"/v1/environments/{segment(environment_id)}:stop"
        )

    async def restart(self, environment_id: str) -> Environment:
        """A new generation on the same host with the same GPUs, which it never lets go of."""
        path = f"/v1/environments/{segment(environment_id)}:restart"
        return await self._transport.call(Environment, "POST", path)

    async def rename(
        self, environment_id: str, *, name: str | None = None, display_name: str | None = None
    ) -> Environment:
        """Change its names. The name of a hub server's environment stays: the hub finds it by that."""
        path = f"/v1/environments/{segment(environment_id)}"
        body = given(name=name, display_name=display_name)
        return await self._transport.call(Environment, "PATCH", path, body=body)

    async def extend(
        self, environment_id: str, *, by_s: float, idempotency_key: str | None = None
    ) -> Environment:
        """Put its stop off by so many seconds, and take an announced idle stop back."""
        path = f"/v1/environments/{segment(environment_id)}:extend"
        return await self._transport.create(
            Environment, path, body={"by_s": by_s}, idempotency_key=idempotency_key
        )

    async def save_image(
        self,
        environment_id: str,
        *,
        name: str,
        display_name: str | None = None,
        description: str | None = None,
        idempotency_key: str | None = None,
    ) -> ImageSave:
        """Save what runs as an image of its workspace: its file system, without the home. It is asked for;
        :meth:`image_saves` tells how far it is.
        """
        path = f"/v1/environments/{segment(environment_id)}:save-image"
        body = given(name=name, display_name=display_name, description=description)
        return await self._transport.create(ImageSave, path, body=body, idempotency_key=idempotency_key)

    async def image_saves(
        self, environment_id: str, *, limit: int | None = None, cursor: str | None = None
    ) -> AsyncPage[ImageSave]:
        """Its saves, newest first, with progress and the reason of a failure."""
        path = f"/v1/environments/{segment(environment_id)}/image-saves"
        params = given(limit=limit, cursor=cursor)
        return await fetch_page(self._transport, ImageSave, path, params)

    async def cancel_image_save(self, save_id: str) -> ImageSave:
        """Take a save back; its host removes what was made of it."""
        return await self._transport.put_in_state(ImageSave, f"/v1/image-saves/{segment(save_id)}:cancel")

    async def access(self, environment_id: str) -> EnvironmentAccess:
        """How to reach it while it runs: notebook, SSH, desktop, ports. Holds no credential."""
        path = f"/v1/environments/{segment(environment_id)}/access"
        return await self._transport.call(EnvironmentAccess, "GET", path)

    async def release(self, environment_id: str) -> Environment:
        """Free what it holds without proof that it is gone. For admins, after a host was lost for good."""
        path = f"/v1/environments/{segment(environment_id)}:release"
        return await self._transport.call(Environment, "POST", path)

    async def delete(self, environment_id: str) -> None:
        """Stop and remove it. The owner's home stays."""
        await self._transport.send("DELETE", f"/v1/environments/{segment(environment_id)}")

    async def logs(self, environment_id: str, *, tail_lines: int | None = None) -> EnvironmentLogs:
        """The newest output of its container."""
        path = f"/v1/environments/{segment(environment_id)}/logs"
        return await self._transport.call(EnvironmentLogs, "GET", path, params=given(tail_lines=tail_lines))

    async def usage(self, environment_id: str) -> EnvironmentUsage:
        """What it uses, as its host's agent measured it."""
        path = f"/v1/environments/{segment(environment_id)}/usage"
        return await self._transport.call(EnvironmentUsage, "GET", path)

    async def wait_ready(
        self, environment_id: str, *, timeout_s: float = 600.0, progress: Progress = True
    ) -> Environment:
        """Follow an environment until it runs. `progress`: a line in a terminal or notebook, nothing, or a
        function that is called with the environment after every look.

        :raises WaitFailed: it failed, was stopped or deleted; has the reason and the last output.
        :raises WaitTimeout: not within `timeout_s` seconds; it goes on.
        """
        return await wait.until_ready(self.get, environment_id, timeout_s=timeout_s, progress=progress)

    async def wait_stopped(
        self, environment_id: str, *, timeout_s: float = 120.0, progress: Progress = False
    ) -> Environment:
        """Follow an environment until it runs no more: stopped, failed or deleted.

        :raises WaitTimeout: not within `timeout_s` seconds; it goes on.
        """
        return await wait.until_stopped(self.get, environment_id, timeout_s=timeout_s, progress=progress)

    async def watch(
        self, environment_id: str, *, give_up_after_s: float = 300.0
    ) -> AsyncGenerator[Environment, None]:
        """The environment as it is now, and again after every change, until it is deleted. Survives broken
        connections and restarts of the server; when those last longer than `give_up_after_s` seconds, the
        last error is raised.
        """
        found = states(
            self._transport,
            lambda: self.get(environment_id),
            subject_type="environment",
            subject_id=environment_id,
            give_up_after_s=give_up_after_s,
        )
        async with aclosing(found):
            async for environment in found:
                yield environment
                if environment.status == EnvironmentStatus.DELETED:
                    return

    async def follow(
        self, environment_id: str, *, tail_lines: int = 100, give_up_after_s: float = 300.0
    ) -> AsyncGenerator[str, None]:
        """Its output in pieces as it comes, from the last `tail_lines` lines on, until it runs no more. Looks
        every two seconds; a marked line stands where more came than was fetched.
        """
        found = wait.output(
            self.get,
            lambda what, lines: self.logs(what, tail_lines=lines),
            environment_id,
            tail_lines=tail_lines,
            give_up_after_s=give_up_after_s,
        )
        async with aclosing(found):
            async for piece in found:
                yield piece
