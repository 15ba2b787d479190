"""The calls of the attempt protocol that the client does not have yet."""

from __future__ import annotations

from remotegpu._async.resources.agent import AsyncAgent
from remotegpu.types.agent import AttemptLogs, AttemptLogsReply


class AttemptCalls(AsyncAgent):
    """``client.agent`` with the output."""

    async def append_logs(self, attempt_id: str, body: AttemptLogs) -> AttemptLogsReply:
        """Hand in the next piece of output."""
        return await self._transport.call(
            AttemptLogsReply, "POST", self._attempt(attempt_id, "logs"), body=body
        )
