"""The hub's spawner contract in terms of environments. Policy stays on the server.

The hub asks at odd times and believes any exception to mean "not running"; so whatever is in doubt here is
answered with "running", and a wish to stop is made durable at the server before anything is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.spawner import Spawner
from tornado import web
from traitlets import Bool, Float, Integer, List, Unicode, default

from remotegpu import AsyncClient, errors
from remotegpu.types.environments import Environment, EnvironmentStatus
from remotegpu.types.images import Image
from remotegpu_spawner import form, stopping
from remotegpu_spawner.connection import shared_client
from remotegpu_spawner.dockerspawner_names import DockerSpawner
from remotegpu_spawner.errors import SpawnRefused, refusal
from remotegpu_spawner.launch import LIVE, Launch, Overtaken, Request, kept, until_answering
from remotegpu_spawner.offers import offers_of
from remotegpu_spawner.options import GIB, InvalidOption, Options, from_form, parse
from remotegpu_spawner.progress import ProgressEvent, progress_event

PACE_PROGRESS_S = 0.2


class RemoteGPUSpawner(DockerSpawner, Spawner):
    """Runs each hub server as an environment on a GPU host."""

    server_url = Unicode(help="Address of the RemoteGPU server, such as http://127.0.0.1:8003.").tag(
        config=True
    )
    hub_token = Unicode(help="The hub's service token (`remotegpu-server init` writes it to a file).").tag(
        config=True
    )
    gpus = Integer(1, min=0, help="GPUs where a request does not say.").tag(config=True)
    gpu_models = List(Unicode(), help="GPU models where a request does not say; empty: any.").tag(config=True)
    queue_wait = Float(
        600,
        min=0,
        help="Seconds a start waits in the queue before its place is kept (keep_place) or given up.",
    ).tag(config=True)
    keep_place = Bool(
        True,
        help="After queue_wait keep the place in the queue, and let the RemoteGPU server start this server "
        "when its turn comes.",
    ).tag(config=True)
    silence_limit = Float(
        120, min=1, help="Seconds the RemoteGPU server may be silent during a start before it is refused."
    ).tag(config=True)
    stop_wait = Float(30, min=0, help="Seconds `stop` waits for the environment to be gone.").tag(config=True)

    user_options: dict[str, Any]
    environment_id: str | None = None
    generation: int | None = None
    """Which start of the environment is this server's; a late stop leaves another one alone."""
    _trail: list[ProgressEvent]
    _seen: Environment | None
    """As the start that is pending saw it last."""
    _instead: dict[str, Any] | None
    """The options that the user asks for in place of those that wait."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trail, self._seen, self._instead = [], None, None

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
        return _from_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        return _apply

    def options_from_query(self, query_data: object) -> dict[str, object]:
        """A link never starts a server: `GET /hub/spawn?x=y` carries no proof that the user meant it."""
        message = "A link cannot start a server. Choose what you need below and press Start."
        raise SpawnRefused(message, reason="link")

    # The request ------------------------------------------------------------------------------------------

    @property
    def defaults(self) -> Options:
        """What a request that says nothing gets."""
        return Options(
            image=self.image,
            gpus=self.gpus,
            gpu_models=tuple(self.gpu_models),
            cpus=float(self.cpu_limit or 1.0),
            memory_gib=int(self.mem_limit or 2 * GIB) / GIB,
        )

    def request(self) -> Options:
        """The user's options over the defaults; old options return at each start, so each is checked."""
        try:
            return parse(self.user_options, self.defaults)
        except InvalidOption as error:
            raise SpawnRefused(str(error), reason="invalid") from None

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

    async def images(self) -> list[Image]:
        """The server's allow-list."""
        return [image async for image in await self.client().images.list()]

    async def explain(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """What would happen if the form were sent with these fields now. Changes nothing."""
        return await form.explain(self, query)

    def waiting(self) -> dict[str, Any]:
        """Why the pending start waits, when it would start, and what would start now."""
        seen = self._seen
        if self.pending != "spawn" or seen is None or seen.status is not EnvironmentStatus.PENDING:
            return {"waits": False}
        position = f" at position {seen.queue_position}" if seen.queue_position else ""
        return {
            "waits": True,
            "title": f"Waiting{position}.",
            "message": seen.message,
            "prospects": form.prospects(seen.wait),
            "offers": offers_of(seen.wait),
        }

    def ask_instead(self, fields: dict[str, list[str]]) -> None:
        """Let the start that waits ask for something else: the fields of the form that differ."""
        if not self.waiting()["waits"]:
            raise SpawnRefused("It does not wait any more.", reason="conflict", status_code=409)
        options = {**(self.user_options or {}), **_from_form(fields)}
        _apply(self, options)
        self._instead = options

    # The contract -----------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Make the environment run and return where it answers. Cancelled: the hub calls `stop`."""
        self._trail, self._seen, self._instead = [], None, None
        if ignored := self.ignored():
            self.log.warning(
                "%s: without meaning for RemoteGPU and not carried over: %s (docs/from-dockerspawner.md)",
                self._log_name,
                ", ".join(ignored),
            )
        wanted = self.request()
        client = self.client()
        try:
            images, existing = await asyncio.gather(self.images(), self.find(client))
            image = await self.chosen_image(wanted.image, images)
            wanted = wanted.with_image(image.name)
            return await self._until_it_answers(client, wanted, existing)
        except errors.RemoteGPUError as error:
            raise refusal(error) from error

    async def poll(self) -> int | None:
        """``None`` while it runs, and whenever that is in doubt."""
        try:
            environment = await self.find(self.client())
        except Exception as error:  # noqa: BLE001  any exception would make the hub believe that it ended
            self.log.warning(
                "%s: taken as running, the RemoteGPU server does not tell: %s", self._log_name, error
            )
            return None
        if environment is not None and environment.status in LIVE and not kept(environment):
            self.environment_id, self.generation = environment.id, environment.generation
            await self._follow_address(environment)
            return None
        self._revoke_old_tokens()
        if environment is not None and environment.status is EnvironmentStatus.FAILED:
            return environment.exit_code or 1
        return 0

    async def stop(self, now: bool = False) -> None:
        """Make the wish to stop durable, then wait a little. The server and the agent do the rest."""
        self._revoke_old_tokens()
        client = self.client()
        try:
            environment = await self.find(client)
            if environment is None or environment.status not in LIVE or kept(environment):
                return
            await client.environments.stop(environment.id)
        except errors.RemoteGPUError as error:
            # The hub swallows what stop() raises and forgets the server, so the wish must not be lost here.
            self.log.error("%s: the stop is repeated until the server takes it: %s", self._log_name, error)
            self._stop_later(client, self.generation)
            return
        if now:
            return
        gone = await stopping.until_gone(client, environment.id, timeout_s=self.stop_wait, log=self.log)
        if not gone:
            self.log.warning("%s: still stopping; the server and the host's agent go on", self._log_name)

    async def get_url(self) -> str:
        """Where the environment answers; in doubt what the hub knows. The hub exits if this raises.

        Asked after a restart of the hub. An environment that was starting when the hub was killed is waited
        for: the hub would stop it after `http_timeout` at an address where nothing can answer yet.
        """
        stored = str(self.server.url)
        try:
            client = self.client()
            environment = await self.find(client)
            if environment is not None and environment.address is None:
                environment = await until_answering(client, environment, timeout_s=self.start_timeout)
        except Exception as error:  # noqa: BLE001  see above: the hub would exit
            self.log.warning("%s: the stored address is kept: %s", self._log_name, error)
            return stored
        if environment is None or environment.address is None:
            return stored
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
        environment = await self.find(client)
        if environment is not None:
            await client.environments.delete(environment.id)

    async def rename(self, old_name: str, new_name: str) -> None:
        """An environment keeps its name: under another one the hub would not find it again."""
        raise web.HTTPError(
            400, "A server keeps its name; change its display name, or make a new server and delete this one."
        )

    def get_state(self) -> dict[str, Any]:
        state = dict(super().get_state())
        if self.environment_id:
            state |= {"environment_id": self.environment_id, "generation": self.generation}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.environment_id = state.get("environment_id")
        self.generation = state.get("generation")

    def clear_state(self) -> None:
        super().clear_state()
        self.environment_id = self.generation = None

    def get_env(self) -> dict[str, str]:
        """The hub's variables; ``MEM_LIMIT`` and ``CPU_LIMIT`` say what this request gets."""
        environ = {name: str(value) for name, value in super().get_env().items()}
        wanted = self.request()
        return environ | {"MEM_LIMIT": str(wanted.memory_bytes), "CPU_LIMIT": str(wanted.cpus)}

    async def _follow_address(self, environment: Environment) -> None:
        """A restart through the API gave it another address: the hub's server and route follow."""
        if not self.ready or environment.address is None:
            return
        url = urlsplit(environment.address)
        if (self.server.ip, self.server.port) == (url.hostname, url.port):
            return
        self.server.ip, self.server.port = url.hostname, url.port
        self.user.db.commit()
        try:
            await self.user.settings["proxy"].add_user(self.user, self.name)
        except Exception as error:  # noqa: BLE001  the hub's own check of its routes does it later
            self.log.warning("%s: its route is not moved yet: %s", self._log_name, error)

    # Steps ------------------------------------------------------------------------------------------------

    async def find(self, client: AsyncClient) -> Environment | None:
        """The environment of this server: by its name, because a crash during start leaves no id behind."""
        page = await client.environments.list(owner=self.user.name, name=self.environment_name)
        living = [found for found in page.items if found.status is not EnvironmentStatus.DELETED]
        return living[0] if living else None

    async def _until_it_answers(
        self, client: AsyncClient, wanted: Options, existing: Environment | None
    ) -> str:
        """The address of what is wanted, or of what the user asks for instead while that waits."""
        while True:
            self._remember(wanted)
            launch = self._launch(client, wanted)
            environment = await launch.begin(existing)
            self.environment_id, self.generation = environment.id, environment.generation
            try:
                return await launch.follow(environment)
            except Overtaken as overtaken:
                existing = overtaken.environment
                self.user_options, self._instead = self._instead or {}, None
                wanted = self.request().with_image(wanted.image)

    def _launch(self, client: AsyncClient, wanted: Options) -> Launch:
        return Launch(
            client=client,
            name=self.environment_name,
            display_name=self.orm_spawner.display_name or self.name,
            wanted=wanted,
            # All of it: a site's own variables may hold secrets too, and these are stored encrypted.
            secret_env=self.get_env(),
            note=self._note,
            send=self._send,
            queue_wait_s=self.queue_wait,
            keep_for=(self.user.name, self.name) if self.keep_place else None,
            silence_limit_s=self.silence_limit,
            end_wait_s=self.silence_limit,
            overtaken=lambda: self._instead is not None,
        )

    async def _send(self, request: Request) -> Environment:
        """Await a create or start. If this start is cancelled meanwhile, what comes of it is stopped."""
        task = asyncio.ensure_future(request)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            client = self.client()
            stopping.when_it_turns_up(task, lambda found: self._stop_later(client, found.generation))
            raise

    def _remember(self, wanted: Options) -> None:
        """The summary for the hub's admin page; the hub itself keeps what the user sent."""
        self.user_options = {**(self.user_options or {}), "profile": wanted.profile}
        self.orm_spawner.user_options = self.user_options
        self.user.db.commit()

    def _note(self, environment: Environment) -> None:
        self._seen = environment
        event = progress_event(environment)
        if not self._trail or self._trail[-1] != event:
            self._trail.append(event)

    def _stop_later(self, client: AsyncClient, generation: int | None) -> None:
        user, name = self.user, self.name

        def still_wanted() -> bool:
            return name not in user.spawners or not user.spawners[name].active

        stopping.later(
            client,
            lambda: self.find(client),
            generation=generation,
            still_wanted=still_wanted,
            log=self.log,
        )

    def _revoke_old_tokens(self) -> None:
        """After a hub restart the spawner has forgotten its token, and the hub would leave it valid."""
        if self.api_token or self.server is None:
            return
        note = f"Server at {self.server.base_url}"
        for token in list(self.user.api_tokens):
            if token.note == note:
                self.user.db.delete(token)
        self.user.db.commit()


def _from_form(form_data: dict[str, list[str]]) -> dict[str, object]:
    try:
        return from_form(form_data)
    except InvalidOption as error:
        raise SpawnRefused(str(error), reason="invalid") from None


def _apply(spawner: RemoteGPUSpawner, user_options: dict[str, object]) -> None:
    """Refuse options that cannot be understood before anything is started, whoever sent them."""
    try:
        parse(user_options, spawner.defaults)
    except InvalidOption as error:
        raise SpawnRefused(str(error), reason="invalid") from None
