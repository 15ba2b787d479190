"""The app: its routers, loops, error shape and life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from remotegpu_server import error_answers, health, invariants, openapi, retention
from remotegpu_server.agents import routes as agents_routes
from remotegpu_server.agents.loop import Rechecks
from remotegpu_server.alerts import loop as alerts_loop
from remotegpu_server.alerts import routes as alerts_routes
from remotegpu_server.attempts import loop as attempts_loop
from remotegpu_server.attempts import routes as attempts_routes
from remotegpu_server.audit import loop as audit_loop
from remotegpu_server.audit import routes as audit_routes
from remotegpu_server.audit.budget import RefusalBudget
from remotegpu_server.auth import loop as auth_loop
from remotegpu_server.auth import routes as auth_routes
from remotegpu_server.blobs import FileBlobs
from remotegpu_server.capacity import routes as capacity_routes
from remotegpu_server.crypto import Vault
from remotegpu_server.customers import loop as customers_loop
from remotegpu_server.customers import routes as customers_routes
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.dedications import loop as dedications_loop
from remotegpu_server.dedications import routes as dedications_routes
from remotegpu_server.environments import history, stop_loop
from remotegpu_server.environments import loop as environments_loop
from remotegpu_server.environments import routes as environments_routes
from remotegpu_server.events import routes as events_routes
from remotegpu_server.fault_points import FaultPoints
from remotegpu_server.gpus import routes as gpus_routes
from remotegpu_server.hosts import loop as hosts_loop
from remotegpu_server.hosts import routes as hosts_routes
from remotegpu_server.hub_starts import loop as hub_starts_loop
from remotegpu_server.image_saves import loop as image_saves_loop
from remotegpu_server.image_saves import routes as image_saves_routes
from remotegpu_server.images import routes as images_routes
from remotegpu_server.loops import Loop, LoopRunner
from remotegpu_server.metrics import loop as metrics_loop
from remotegpu_server.metrics import routes as metrics_routes
from remotegpu_server.middleware import RequestEnvelope
from remotegpu_server.notifications import loop as notifications_loop
from remotegpu_server.notifications import routes as notifications_routes
from remotegpu_server.outbox import mail_loop as outbox_mail_loop
from remotegpu_server.outbox import webhook_loop as outbox_webhook_loop
from remotegpu_server.outputs import loop as outputs_loop
from remotegpu_server.outputs import routes as outputs_routes
from remotegpu_server.platform_settings import routes as settings_routes
from remotegpu_server.queue import loop as queue_loop
from remotegpu_server.queue import preemption, turns
from remotegpu_server.queue import routes as queue_routes
from remotegpu_server.quotas import loop as quotas_loop
from remotegpu_server.quotas import routes as quotas_routes
from remotegpu_server.quotas import storage as quotas_storage
from remotegpu_server.reservations import loop as reservations_loop
from remotegpu_server.reservations import routes as reservations_routes
from remotegpu_server.settings import Settings
from remotegpu_server.ssh_keys import loop as ssh_keys_loop
from remotegpu_server.ssh_keys import routes as ssh_keys_routes
from remotegpu_server.task_inputs import loop as task_inputs_loop
from remotegpu_server.task_inputs import routes as task_inputs_routes
from remotegpu_server.task_schedules import loop as task_schedules_loop
from remotegpu_server.task_schedules import routes as task_schedules_routes
from remotegpu_server.tasks import routes as tasks_routes
from remotegpu_server.tokens import routes as tokens_routes
from remotegpu_server.tokens.use import TokenUse
from remotegpu_server.usage import routes as usage_routes
from remotegpu_server.users import routes as users_routes
from remotegpu_server.volumes import loop as volumes_loop
from remotegpu_server.volumes import routes as volumes_routes
from remotegpu_server.webhooks import routes as webhooks_routes
from remotegpu_server.workspaces import routes as workspaces_routes

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    auth_routes.router,
    tokens_routes.router,
    customers_routes.router,
    users_routes.router,
    workspaces_routes.router,
    hosts_routes.router,
    dedications_routes.router,
    gpus_routes.router,
    capacity_routes.router,
    images_routes.router,
    quotas_routes.router,
    ssh_keys_routes.router,
    settings_routes.router,
    usage_routes.router,
    metrics_routes.router,
    environments_routes.router,
    image_saves_routes.router,
    volumes_routes.router,
    tasks_routes.router,
    task_inputs_routes.router,
    task_inputs_routes.agent_router,
    task_schedules_routes.router,
    attempts_routes.router,
    outputs_routes.agent_router,
    outputs_routes.router,
    queue_routes.router,
    reservations_routes.router,
    agents_routes.router,
    events_routes.router,
    notifications_routes.router,
    alerts_routes.router,
    webhooks_routes.router,
    audit_routes.router,
)
"""Every router of the server; a slice adds its line here."""

LOOPS: tuple[Loop, ...] = (
    turns.LOOP,
    environments_loop.STARTS,
    attempts_loop.LOST,
    attempts_loop.GANGS,
    attempts_loop.HELD_UP,
    attempts_loop.UNCLAIMED,
    attempts_loop.TIMEOUTS,
    attempts_loop.STOP_TIMES,
    attempts_loop.DEPENDENCIES,
    outputs_loop.LOOP,
    task_inputs_loop.LOOP,
    outbox_mail_loop.LOOP,
    outbox_webhook_loop.LOOP,
    notifications_loop.DIGESTS,
    notifications_loop.SWEEP,
    task_schedules_loop.LOOP,
    audit_loop.LOOP,
    auth_loop.LOOP,
    customers_loop.LOOP,
    stop_loop.DEADLINES,
    stop_loop.IDLE,
    history.LOOP,
    ssh_keys_loop.LOOP,
    queue_loop.OUTLOOK,
    preemption.LOOP,
    reservations_loop.LOOP,
    hub_starts_loop.LOOP,
    hosts_loop.LIVENESS,
    alerts_loop.LOOP,
    alerts_loop.SELDOM,
    hosts_loop.DRAINS,
    quotas_loop.GPU_HOURS,
    quotas_storage.LOOP,
    quotas_loop.REQUESTS,
    quotas_loop.POLICIES,
    dedications_loop.LOOP,
    volumes_loop.LOOP,
    image_saves_loop.LOOP,
    metrics_loop.LOOP,
    retention.LOOP,
    invariants.LOOP,
)
"""Every background loop; a slice adds its line here."""


def create_app(settings: Settings, *, run_loops: bool = True, loops: Sequence[Loop] = LOOPS) -> FastAPI:
    """The server as an ASGI app. Opens connections when its life begins, not before."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        database: Database = app.state.database
        token_use: TokenUse = app.state.token_use
        runner: LoopRunner = app.state.loop_runner
        database.signals.start()
        database.samples.start()
        token_use.start()
        if run_loops:
            runner.start()
        try:
            yield
        finally:
            database.signals.stop_waiting()
            await runner.stop()
            await token_use.stop()
            await database.close()

    app = FastAPI(
        title="RemoteGPU",
        version="1",
        summary="GPU hosts as one JupyterHub: hosts, environments, quotas, identity, events.",
        lifespan=life,
        redoc_url=None,
        docs_url=None,
        separate_input_output_schemas=False,
    )
    vault = Vault(settings.secret_key)
    app.state.settings = settings
    app.state.vault = vault
    app.state.blobs = FileBlobs(settings.blob_dir)
    app.state.database = connect(settings.database_url, pool_size=settings.pool_size)
    app.state.loop_runner = LoopRunner(
        loops if run_loops else (), database=app.state.database, settings=settings, vault=vault
    )
    app.state.token_use = TokenUse(app.state.database)
    app.state.rechecks = Rechecks(app.state.database)
    app.state.refusals = RefusalBudget()
    app.state.fault_points = FaultPoints(settings.crash_at)
    for router in ROUTERS:
        # Not include_router: it copies every route, and with it the validators that routing.py has built.
        app.router.routes.extend(router.routes)
    error_answers.install(app)
    app.add_middleware(RequestEnvelope)
    openapi.install(app)
    return app
