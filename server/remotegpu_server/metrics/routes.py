"""Endpoints of the history of measurements."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from remotegpu.types.metrics import MetricsReport, ScrapeTarget
from remotegpu.types.wire import UtcTime
from remotegpu_server.deps import Caller, Db
from remotegpu_server.metrics import service
from remotegpu_server.metrics.service import Asked
from remotegpu_server.routing import api_router

router = api_router("metrics")


def _asked(
    begin: Annotated[
        UtcTime | None, Query(alias="from", description="Left out: an hour before `to`.")
    ] = None,
    end: Annotated[UtcTime | None, Query(alias="to", description="Left out: now.")] = None,
    step_s: Annotated[
        int | None, Query(ge=1, le=31 * 86400, description="Left out: what makes at most 240 steps.")
    ] = None,
    metric: Annotated[list[str], Query(max_length=50, description="Repeatable; left out: everything.")] = [],  # noqa: B006  FastAPI copies it
) -> Asked:
    return Asked(begin=begin, end=end, step_s=step_s, metrics=metric)


Range = Annotated[Asked, Depends(_asked)]


@router.get("/v1/hosts/{host}/metrics", summary="What was measured of a host and its GPUs (admins)")
async def get_host_metrics(host: str, db: Db, caller: Caller, asked: Range) -> MetricsReport:
    """By id or name."""
    return await service.of_host(db, actor=caller, host=host, asked=asked)


@router.get("/v1/gpus/{gpu}/metrics", summary="What was measured of a GPU (admins)")
async def get_gpu_metrics(gpu: str, db: Db, caller: Caller, asked: Range) -> MetricsReport:
    """By id or UUID, whoever held it."""
    return await service.of_gpu(db, actor=caller, gpu=gpu, asked=asked)


@router.get("/v1/environments/{environment_id}/metrics", summary="What was measured of an environment")
async def get_environment_metrics(environment_id: str, db: Db, caller: Caller, asked: Range) -> MetricsReport:
    """Over all its starts, and of its GPUs while it held them."""
    return await service.of_environment(db, actor=caller, environment_id=environment_id, asked=asked)


@router.get("/v1/tasks/{task_id}/metrics", summary="What was measured of a task")
async def get_task_metrics(task_id: str, db: Db, caller: Caller, asked: Range) -> MetricsReport:
    """Over all its attempts, and of their GPUs while they held them."""
    return await service.of_task(db, actor=caller, task_id=task_id, asked=asked)


@router.get("/v1/workspaces/{workspace}/metrics", summary="What was measured in a workspace")
async def get_workspace_metrics(workspace: str, db: Db, caller: Caller, asked: Range) -> MetricsReport:
    """All that ran in it together; simulated GPUs apart."""
    return await service.of_workspace(db, actor=caller, workspace_id=workspace, asked=asked)


@router.get("/v1/customers/{customer}/metrics", summary="What was measured for a customer (owners, admins)")
async def get_customer_metrics(customer: str, db: Db, caller: Caller, asked: Range) -> MetricsReport:
    """All that ran for it together; simulated GPUs apart."""
    return await service.of_customer(db, actor=caller, customer=customer, asked=asked)


@router.get("/v1/prometheus/targets", summary="The agents that Prometheus can scrape")
async def get_scrape_targets(db: Db, caller: Caller) -> list[ScrapeTarget]:
    """For its HTTP service discovery, with a token of the scope `metrics`."""
    return await service.scrape_targets(db, actor=caller)
