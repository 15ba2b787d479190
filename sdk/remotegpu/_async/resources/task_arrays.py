"""Arrays of tasks, as a whole."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import segment
from remotegpu.types.tasks import TaskArrayState


class AsyncTaskArrays(AsyncResource):
    """Arrays of tasks, as a whole."""

    async def get(self, array_id: str) -> TaskArrayState:
        """How many of its tasks stand where."""
        return await self._transport.call(TaskArrayState, "GET", f"/v1/task-arrays/{segment(array_id)}")

    async def stop(self, array_id: str) -> TaskArrayState:
        """Cancel what waits, and end what runs: TERM, then KILL after its grace."""
        path = f"/v1/task-arrays/{segment(array_id)}:stop"
        return await self._transport.call(TaskArrayState, "POST", path)
