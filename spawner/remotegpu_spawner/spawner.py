"""The hub's spawner contract in terms of environments. Policy stays on the server.

The hub asks at odd times and believes any exception to mean "not running"; so whatever is in doubt here is
answered with "running", and a wish to stop is made durable at the server before anything is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from jupyterhub.spawner import Spawner
from tornado import web
from traitlets import Any as AnyTrait
from traitlets import Dict, Float, Integer, List, Unicode, default

from remotegpu import AsyncClient, errors
from remotegpu.types.environments import Environment, EnvironmentStatus
from remotegpu_spawner import form
from remotegpu_spawner.connection import shared_client
from remotegpu_spawner.errors import SpawnRefused, failed, refusal
from remotegpu_spawner.naming import environment_name
from remotegpu_spawner.options import GIB, InvalidOption, Options, from_form, parse
from remotegpu_spawner.progress import ProgressEvent, progress_event

LIVE = frozenset(
    {
        EnvironmentStatus.PENDING,
        EnvironmentStatus.STARTING,
        EnvironmentStatus.RUNNING,
        EnvironmentStatus.STOPPING,
        EnvironmentStatus.UNREACHABLE,
        EnvironmentStatus.UNKNOWN,
    }
)
"""Statuses in which the hub must believe that the server runs."""

PACE_STARTING_S = 0.15
PACE_WAITING_S = 1.0
PACE_PROGRESS_S = 0.2


class RemoteGPUSpawner(Spawner):  # type: ignore[misc]
    """Runs each hub server as an environment on a GPU host."""

    server_url = Unicode(help="Address of the RemoteGPU server, such as http://127.0.0.1:8003.").tag(
        config=True
    )
    hub_token = Unicode(help="The hub's service token (`remotegpu-server init` writes it to a file).").tag(
        config=True
    )
    gpus = Integer(1, min=0, help="GPUs where a request does not say.").tag(config=True)
    gpu_model = Unicode("", help="GPU model where a request does not say; empty: any.").tag(config=True)
    queue_wait = Float(600, min=0, help="Seconds a start may wait in the queue before it is refused.").tag(
        config=True
    )
    silence_limit = Float(
        120, min=1, help="Seconds the RemoteGPU server may be silent during a start before it is refused."
    ).tag(config=True)
    stop_wait = Float(30, min=0, help="Seconds `stop` waits for the environment to be gone.").tag(config=True)

    # DockerSpawner's names, so that a site moves over by changing the class.
    image = Unicode("", help="Default image: its name or reference on the server's allow-list.").tag(
        config=True
    )
    allowed_images = AnyTrait(
        None,
        allow_none=True,
        help="Images offered on the form: a list, a dict of label → image, or a callable of the spawner.",
    ).tag(config=True)
    volumes = Dict(help="Not carried over: every user has one home, made by the platform.").tag(config=True)
    name_template = Unicode(
        "", help="Name of the environment, such as {prefix}-{username}--{servername}."
    ).tag(config=True)
    extra_create_kwargs = Dict(help="Not carried over.").tag(config=True)
    extra_host_config = Dict(help="Not carried over.").tag(config=True)
    network_name = Unicode("", help="Not carried over: each environment has a network of its own.").tag(
        config=True
    )
    remove = AnyTrait(
        None, allow_none=True, help="Not carried over: containers are always removed, homes never."
    ).tag(config=True)
    ignored_traits = List(
        ["volumes", "extra_create_kwargs", "extra_host_config", "network_name", "remove"],
        help="Settings of DockerSpawner that have no meaning here.",
    )

    environment_id: str | None = None
    _trail: list[ProgressEvent]
    _unfinished_stops: ClassVar[set[asyncio.Task[None]]] = set()
    """Held here, because the hub drops a stopped spawner and asyncio a task that nobody holds."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trail = []

    @default("ip")
    def _default_ip(self) -> str:
        return "0.0.0.0"  # noqa: S104  (inside the environment's own network)

    @default("port")
    def _default_port(self) -> int:
        return 8888

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return []

    @default("start_timeout")
    def _default_start_timeout(self) -> int:
        return 3600

    @default("http_timeout")
    def _default_http_timeout(self) -> int:
        return 120

    @default("poll_interval")
    def _default_poll_interval(self) -> int:
        return 15

    @default("cpu_limit")
    def _default_cpu_limit(self) -> float:
        return 1.0

    @default("mem_limit")
    def _default_mem_limit(self) -> int:
        return 2 * GIB

    @default("options_form")
    def _default_options_form(self) -> Any:
        return form.render

    @default("options_from_form")
    def _default_options_from_form(self) -> Any:
        return self._from_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        return _apply

    def options_from_query(self, query_data: object) -> dict[str, object]:
        """A link never starts a server: `GET /hub/spawn?x=y` carries no proof that the user meant it."""
        raise web.HTTPError(
            400, "A link cannot start a server. Open the form without parameters and press Start."
        )

    @staticmethod
    def _from_form(form_data: dict[str, list[str]]) -> dict[str, object]:
        try:
            return from_form(form_data)
        except InvalidOption as error:
            raise SpawnRefused(str(error), reason="invalid") from None

    # The request ------------------------------------------------------------------------------------------

    @property
    def defaults(self) -> Options:
        """What a request that says nothing gets."""
        return Options(
            image=self.image,
            gpus=self.gpus,
            gpu_model=self.gpu_model,
            cpus=float(self.cpu_limit or 1.0),
            memory_gib=int(self.mem_limit or 2 * GIB) / GIB,
        )

    def request(self) -> Options:
        """The user's options over the defaults; old options return at each start, so each is checked."""
        try:
            return parse(self.user_options, self.defaults)
        except InvalidOption as error:
            raise SpawnRefused(str(error), reason="invalid") from None

    @property
    def environment_name(self) -> str:
        return environment_name(self.name, self.name_template, self.user.name)

    def client(self) -> AsyncClient:
        """The RemoteGPU server, as this server's user."""
        if not self.server_url or not self.hub_token:
            raise SpawnRefused(
                "The hub is not connected to a RemoteGPU server. Ask your administrator to call "
                "remotegpu_hub.configure(c) in jupyterhub_config.py.",
                reason="setup",
                status_code=500,
            )
        return shared_client(self.server_url, self.hub_token).on_behalf_of(self.user.name)

    async def offered_images(self) -> list[str]:
        """Names or references that ``allowed_images`` leaves; empty: everything on the allow-list."""
        allowed = self.allowed_images(self) if callable(self.allowed_images) else self.allowed_images
        return list(allowed.values()) if isinstance(allowed, dict) else list(allowed or [])

    # The contract -----------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Make the environment run and return where it answers. Cancelled: the hub calls `stop`."""
        self._trail = []
        self._say_what_is_ignored()
        wanted = self.request()
        client = self.client()
        try:
            wanted = await self._with_image(client, wanted)
            environment = await self._begin(client, wanted)
            self.environment_id = environment.id
            return await self._until_running(client, environment)
        except errors.RemoteGPUError as error:
            raise refusal(error) from error

    async def poll(self) -> int | None:
        """``None`` while it runs, and whenever that is in doubt."""
        try:
            environment = await self._find(self.client())
        except (errors.RemoteGPUError, SpawnRefused) as error:
            self.log.warning(
                "%s: taken as running, the RemoteGPU server does not tell: %s", self._log_name, error
            )
            return None
        if environment is None:
            return 0
        self.environment_id = environment.id
        if environment.status in LIVE:
            return None
        if environment.status is EnvironmentStatus.FAILED:
            return environment.exit_code or 1
        return 0

    async def stop(self, now: bool = False) -> None:
        """Make the wish to stop durable, then wait a little. The server and the agent do the rest."""
        self._revoke_old_tokens()
        client = self.client()
        try:
            environment = await self._find(client)
            if environment is None or environment.status not in LIVE:
                return
            await client.environments.stop(environment.id)
        except errors.RemoteGPUError as error:
            # The hub swallows what stop() raises and forgets the server, so the wish must not be lost here.
            self.log.error("%s: the stop is repeated until the server takes it: %s", self._log_name, error)
            self._stop_later(client)
            return
        if not now:
            await self._until_gone(client, environment.id)

    async def get_url(self) -> str:
        """Where the environment answers; in doubt what the hub knows. The hub exits if this raises."""
        try:
            environment = await self._find(self.client())
        except (errors.RemoteGPUError, SpawnRefused) as error:
            self.log.warning("%s: the stored address is kept: %s", self._log_name, error)
            return str(self.server.url)
        if environment is None or environment.address is None:
            return str(self.server.url)
        return environment.address + str(self.server.base_url)

    async def progress(self) -> AsyncIterator[ProgressEvent]:
        """What happened since the click, then what happens. Ends with the start, by the hub."""
        shown = 0
        while True:
            while shown < len(self._trail):
                yield self._trail[shown]
                shown += 1
            await asyncio.sleep(PACE_PROGRESS_S)

    async def delete_forever(self) -> None:
        """The named server is deleted, so its environment is. The home stays."""
        client = self.client()
        environment = await self._find(client)
        if environment is not None:
            await client.environments.delete(environment.id)

    def get_state(self) -> dict[str, Any]:
        state = dict(super().get_state())
        if self.environment_id:
            state["environment_id"] = self.environment_id
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.environment_id = state.get("environment_id", self.environment_id)

    def clear_state(self) -> None:
        super().clear_state()
        self.environment_id = None

    # Steps ------------------------------------------------------------------------------------------------

    async def _find(self, client: AsyncClient) -> Environment | None:
        """The environment of this server: by its name, because a crash during start leaves no id behind."""
        page = await client.environments.list(owner=self.user.name, name=self.environment_name)
        living = [found for found in page.items if found.status is not EnvironmentStatus.DELETED]
        return living[0] if living else None

    async def _with_image(self, client: AsyncClient, wanted: Options) -> Options:
        offered = await self.offered_images()
        if wanted.image and offered and wanted.image not in offered:
            raise SpawnRefused(
                f"The image {wanted.image} is not offered here. Choose one of: {', '.join(offered)}.",
                reason="image",
            )
        if not wanted.image:
            names = offered or [
                image.name for image in (await client.images.list()).items if image.status == "active"
            ]
            if not names:
                raise SpawnRefused(
                    "No image may run yet. An admin adds one with `remotegpu image add`.", reason="image"
                )
            wanted = Options(names[0], wanted.gpus, wanted.gpu_model, wanted.cpus, wanted.memory_gib)
        self.user_options = {**(self.user_options or {}), "profile": wanted.profile}
        return wanted

    async def _begin(self, client: AsyncClient, wanted: Options) -> Environment:
        existing = await self._find(client)
        environ = self.get_env()
        public = {
            name: str(self.environment[name])
            for name in self.environment
            if isinstance(self.environment[name], str)
        }
        secret = {name: str(value) for name, value in environ.items() if name not in public}
        sizes: dict[str, Any] = {
            "image": wanted.image,
            "gpus": wanted.gpus,
            "cpus": wanted.cpus,
            "memory_bytes": wanted.memory_bytes,
            "env": {},
            "secret_env": {**secret, **public},
        }
        if existing is None:
            return await client.environments.create(
                name=self.environment_name,
                display_name=getattr(self.orm_spawner, "display_name", None) or self.name,
                gpu_model=wanted.gpu_model or None,
                **sizes,
            )
        if existing.status in LIVE:
            # It carries the hub token of an earlier start, which this start has replaced.
            self.log.info("%s: an earlier start of %s is ended first", self._log_name, existing.id)
            await client.environments.stop(existing.id)
            await client.environments.wait_stopped(existing.id, timeout_s=self.silence_limit)
        elif existing.status is EnvironmentStatus.FAILED:
            await self._until_released(client, existing)
        return await client.environments.start(existing.id, gpu_model=wanted.gpu_model, **sizes)

    async def _until_released(self, client: AsyncClient, environment: Environment) -> None:
        """A failed environment holds its GPUs until its host has proved that nothing of it is left."""
        deadline = time.monotonic() + self.stop_wait
        while environment.allocated_gpus and time.monotonic() < deadline:
            await asyncio.sleep(PACE_STARTING_S)
            environment = await client.environments.get(environment.id)

    async def _until_running(self, client: AsyncClient, environment: Environment) -> str:
        queued_since = heard = time.monotonic()
        generation = environment.generation
        while True:
            self._note(environment)
            if environment.generation != generation:
                raise SpawnRefused(
                    "The server was started again from elsewhere.", reason="superseded", status_code=409
                )
            match environment.status:
                case EnvironmentStatus.RUNNING if environment.address:
                    return environment.address
                case EnvironmentStatus.FAILED:
                    raise failed(environment)
                case EnvironmentStatus.STOPPING | EnvironmentStatus.STOPPED | EnvironmentStatus.DELETED:
                    raise SpawnRefused(
                        "The server was stopped while it started.", reason="stopped", status_code=409
                    )
                case EnvironmentStatus.PENDING:
                    if time.monotonic() - queued_since > self.queue_wait:
                        await client.environments.stop(environment.id)
                        raise SpawnRefused(
                            f"Nothing became free within {self.queue_wait / 60:.0f} minutes: "
                            f"{environment.message} "
                            "Try again later, or ask for fewer or other GPUs.",
                            reason="capacity",
                            status_code=503,
                        )
            await asyncio.sleep(
                PACE_WAITING_S if environment.status is EnvironmentStatus.PENDING else PACE_STARTING_S
            )
            try:
                environment = await client.environments.get(environment.id)
                heard = time.monotonic()
            except (errors.ClientError, errors.ServerError, errors.Unavailable) as error:
                # The server restarts; the environment goes on starting meanwhile.
                if time.monotonic() - heard > self.silence_limit:
                    raise
                self.log.warning("%s: the RemoteGPU server is silent: %s", self._log_name, error)

    def _note(self, environment: Environment) -> None:
        event = progress_event(environment)
        if not self._trail or self._trail[-1] != event:
            self._trail.append(event)

    async def _until_gone(self, client: AsyncClient, environment_id: str) -> None:
        deadline = time.monotonic() + self.stop_wait
        while time.monotonic() < deadline:
            try:
                if (await client.environments.get(environment_id)).status not in LIVE:
                    return
            except errors.NotFound:
                return
            except errors.RemoteGPUError as error:
                self.log.warning(
                    "%s: stopping, and the RemoteGPU server is silent: %s", self._log_name, error
                )
            await asyncio.sleep(PACE_STARTING_S)
        self.log.warning("%s: still stopping; the server and the host's agent go on", self._log_name)

    def _stop_later(self, client: AsyncClient) -> None:
        task = asyncio.create_task(
            self._repeat_stop(client, self.environment_id), name=f"stop {self._log_name}"
        )
        self._unfinished_stops.add(task)
        task.add_done_callback(self._unfinished_stops.discard)

    async def _repeat_stop(self, client: AsyncClient, environment_id: str | None) -> None:
        pause = 1.0
        for _ in range(40):
            await asyncio.sleep(pause)
            pause = min(60.0, pause * 2)
            try:
                environment = (
                    await self._find(client)
                    if environment_id is None
                    else await client.environments.get(environment_id)
                )
                if environment is not None and environment.status in LIVE and not self.active:
                    await client.environments.stop(environment.id)
                return
            except errors.NotFound:
                return
            except errors.RemoteGPUError as error:
                self.log.warning("%s: the stop could not be delivered yet: %s", self._log_name, error)
        self.log.error(
            "%s: the stop was given up; stop environment %s by hand", self._log_name, environment_id
        )

    def _revoke_old_tokens(self) -> None:
        """After a hub restart the spawner has forgotten its token, and the hub would leave it valid."""
        if self.api_token or self.server is None:
            return
        note = f"Server at {self.server.base_url}"
        for token in list(self.user.api_tokens):
            if token.note == note:
                self.db.delete(token)
        self.db.commit()

    def _say_what_is_ignored(self) -> None:
        given = [name for name in self.ignored_traits if getattr(self, name)]
        if given:
            self.log.warning(
                "%s: %s of DockerSpawner is not carried over: see docs/from-dockerspawner.md",
                self._log_name,
                ", ".join(given),
            )


def _apply(spawner: RemoteGPUSpawner, user_options: dict[str, object]) -> None:
    """Refuse options that cannot be understood before anything is started, whoever sent them."""
    try:
        parse(user_options, spawner.defaults)
    except InvalidOption as error:
        raise SpawnRefused(str(error), reason="invalid") from None
