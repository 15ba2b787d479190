"""The app: its routers, loops, error shape and life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from remotegpu_server import error_answers, health, openapi
from remotegpu_server.crypto import Vault
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.fault_points import FaultPoints
from remotegpu_server.loops import Loop, LoopRunner
from remotegpu_server.middleware import RequestEnvelope
from remotegpu_server.settings import Settings
from remotegpu_server.tokens.use import TokenUse

ROUTERS: tuple[APIRouter, ...] = (health.router,)
"""Every router of the server; a slice adds its line here."""

LOOPS: tuple[Loop, ...] = ()
"""Every background loop; a slice adds its line here."""


def create_app(settings: Settings, *, run_loops: bool = True, loops: Sequence[Loop] = LOOPS) -> FastAPI:
    """The server as an ASGI app. Opens connections when its life begins, not before."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        database: Database = app.state.database
        token_use: TokenUse = app.state.token_use
        runner = LoopRunner(loops if run_loops else (), database=database, settings=settings, vault=vault)
        database.signals.start()
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
    app.state.database = connect(settings.database_url, pool_size=settings.pool_size)
    app.state.token_use = TokenUse(app.state.database)
    app.state.fault_points = FaultPoints(settings.crash_at)
    for router in ROUTERS:
        app.include_router(router, responses=error_answers.ERROR_RESPONSES)
    error_answers.install(app)
    app.add_middleware(RequestEnvelope)
    openapi.install(app)
    return app
