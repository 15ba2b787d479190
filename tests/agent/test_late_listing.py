"""An engine that tells of an end before its listing shows it, as Docker 20.10 does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from remotegpu.types.agent import DesiredState, HomeVolume, Observed, ObservedWorkload, Workload
from remotegpu_agent.converge import Converger
from remotegpu_agent.journal import Entry, Journal
from remotegpu_agent.runtime import Actual, ActualState, Runtime


class LateListing:
    """One workload; after its event, two listings still call it running."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.stale_listings = 2

    async def wait_change(self) -> None:
        await self.end.wait()
        self.end.clear()
        self.ended = True

    ended = False

    async def find(self, workload_id: str | None = None) -> list[Actual]:
        state = ActualState.RUNNING
        if self.ended:
            state = ActualState.RUNNING if self.stale_listings > 0 else ActualState.EXITED
            self.stale_listings -= 1
        exit_code = 3 if state is ActualState.EXITED else None
        return [
            Actual(key="c1", name="c1", workload_id="env-1", generation=1, state=state, exit_code=exit_code)
        ]

    def authorize(self, workload_id: str, keys: object) -> None:
        """It has no SSH server."""

    async def logs(self, actual: Actual, tail_lines: int) -> tuple[str, bool]:
        return "bye", False


async def test_end_is_seen_soon_after_its_event_though_the_listing_is_late(tmp_path: Path) -> None:
    runtime = LateListing()
    journal = Journal(tmp_path / "journal.json")
    journal.put("env-1", Entry(generation=1, gpu_uuids=(), ready=True))
    seen: asyncio.Queue[ObservedWorkload] = asyncio.Queue()
    converger = Converger(
        runtime=cast("Runtime", runtime), journal=journal, report=seen.put_nowait, observe_every_s=3600
    )
    facts: dict[str, Any] = {"cpus": 1, "memory_bytes": 2**28, "start_timeout_s": 30, "stop_grace_s": 1}
    converger.set_desired(
        [
            Workload(
                id="env-1", generation=1, desired=DesiredState.RUNNING, name="lab", owner="ada",
                image_reference="lab", image_digest=None, command=None, env={}, secret_env={}, gpu_uuids=[],
                home=HomeVolume(volume_id="vol-1", shared=False), port=8888, **facts,
            )
        ]
    )  # fmt: skip
    observer = asyncio.create_task(converger.run())
    try:
        async with asyncio.timeout(10):
            await seen.get()
            runtime.end.set()
            while (state := await seen.get()).observed is not Observed.EXITED:
                pass
        assert (state.exit_code, state.log_tail) == (3, "bye")
    finally:
        observer.cancel()
        await asyncio.gather(observer, return_exceptions=True)
        await converger.close()
