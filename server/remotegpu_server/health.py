"""``/healthz``, ``/readyz`` and ``/metrics``: for machines, outside ``/v1``."""

from __future__ import annotations

import ipaddress

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from remotegpu.errors import Unavailable
from remotegpu_server import observability
from remotegpu_server.authz import Action, require
from remotegpu_server.db.engine import Database
from remotegpu_server.db.schema import HEAD
from remotegpu_server.deps import bearer, identify
from remotegpu_server.loops import LoopRunner
from remotegpu_server.metrics import fleet
from remotegpu_server.routing import api_router

router = api_router("health")
_log = structlog.get_logger(__name__)


@router.get("/healthz", summary="The process is alive")
async def healthz() -> dict[str, str]:
    """Answers as long as the process can; says nothing about the database."""
    return {"status": "ok"}


@router.get("/readyz", summary="The database answers and its schema is current")
async def readyz(request: Request) -> dict[str, str]:
    """503 ``unavailable`` while requests could not be served."""
    database: Database = request.app.state.database
    async with database.sessions() as db:
        if not await db.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL")):
            raise Unavailable("The database is empty.", hint="Run `remotegpu-server migrate`.")
        found = await db.scalar(text("SELECT version_num FROM alembic_version"))
    if found != HEAD:
        raise Unavailable(
            f"The database's schema is at {found}, this server needs {HEAD}.",
            hint="Run `remotegpu-server migrate`.",
        )
    return {"status": "ready", "schema": HEAD}


@router.get("/metrics", summary="Prometheus metrics of this process", response_class=Response)
async def metrics(request: Request) -> Response:
    """For clients on this machine that show no token, or a token with the scope ``metrics``. The server that
    leads tells of the fleet too.
    """
    database: Database = request.app.state.database
    if bearer(request) is not None or not _is_loopback(request):
        async with database.sessions() as db:
            require(await identify(request, db), Action.METRICS_READ)
    for name, engine in (("requests", database.engine), ("heartbeats", database.heartbeat_engine)):
        observability.POOL_IN_USE.labels(name).set(engine.pool.checkedout())  # type: ignore[attr-defined]
    pieces = [generate_latest().decode()]
    runner: LoopRunner = request.app.state.loop_runner
    if runner.leading:
        try:
            async with database.sessions() as db:
                pieces += [piece async for piece in fleet.exposed(db)]
        except (SQLAlchemyError, OSError) as error:  # then what this process knows is wanted most
            _log.warning("fleet_not_told", error=type(error).__name__)
    return Response("".join(pieces), media_type=CONTENT_TYPE_LATEST)


def _is_loopback(request: Request) -> bool:
    """A direct local client; one that came through a proxy is not local."""
    if request.client is None or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
