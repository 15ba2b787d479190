# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Arrays of tasks, as a whole."""

from __future__ import annotations

from remotegpu._protocol import segment
from remotegpu._sync.resource import SyncResource
from remotegpu.types.tasks import TaskArrayState


class SyncTaskArrays(SyncResource):
    """Arrays of tasks, as a whole."""

    def get(self, array_id: str) -> TaskArrayState:
        """How many of its tasks stand where."""
        return self._transport.call(TaskArrayState, "GET", f"/v1/task-arrays/{segment(array_id)}")

    def stop(self, array_id: str) -> TaskArrayState:
        """Cancel what waits, and end what runs: TERM, then KILL after its grace."""
        path = f"/v1/task-arrays/{segment(array_id)}:stop"
        return self._transport.call(TaskArrayState, "POST", path)
