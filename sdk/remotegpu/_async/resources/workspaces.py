"""Workspaces and their members."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, measured, segment
from remotegpu.types.metrics import MetricsReport
from remotegpu.types.workspaces import Workspace, WorkspaceMember


class AsyncWorkspaces(AsyncResource):
    """Workspaces and their members. A workspace is named by its id, a member by user id or name."""

    async def list(
        self, *, mine: bool | None = None, limit: int | None = None, cursor: str | None = None
    ) -> AsyncPage[Workspace]:
        """The workspaces that the caller may see; with `mine` only those the caller is a member of."""
        query = given(mine=mine, limit=limit, cursor=cursor)
        return await fetch_page(self._transport, Workspace, "/v1/workspaces", query)

    async def create(
        self, *, name: str, description: str | None = None, idempotency_key: str | None = None
    ) -> Workspace:
        """A new team workspace of the caller."""
        body = given(name=name, description=description)
        return await self._transport.create(
            Workspace, "/v1/workspaces", body=body, idempotency_key=idempotency_key
        )

    async def get(self, workspace: str) -> Workspace:
        """One workspace."""
        return await self._transport.call(Workspace, "GET", _path(workspace))

    async def metrics(
        self,
        workspace: str,
        *,
        begin: datetime | None = None,
        end: datetime | None = None,
        step_s: int | None = None,
        metric: Sequence[str] | None = None,
    ) -> MetricsReport:
        """What was measured of all that ran in a workspace, together.

        Without times: the last hour. ``to_pandas()`` makes it a DataFrame.
        """
        path = f"/v1/workspaces/{segment(workspace)}/metrics"
        return await self._transport.call(
            MetricsReport, "GET", path, params=measured(begin, end, step_s, metric)
        )

    async def update(
        self,
        workspace: str,
        *,
        name: str | None = None,
        description: str | None = None,
        max_lifetime_s: float | None = None,
    ) -> Workspace:
        """Change what is given. `max_lifetime_s` bounds what starts in it; 0: not any more."""
        body = given(name=name, description=description, max_lifetime_s=max_lifetime_s)
        return await self._transport.call(Workspace, "PATCH", _path(workspace), body=body)

    async def delete(self, workspace: str) -> None:
        """Delete it with its members and ended environments."""
        await self._transport.send("DELETE", _path(workspace))

    async def archive(self, workspace: str) -> Workspace:
        """Let nothing start in it any more."""
        return await self._transport.put_in_state(Workspace, f"{_path(workspace)}:archive")

    async def restore(self, workspace: str) -> Workspace:
        """Take it out of the archive."""
        return await self._transport.put_in_state(Workspace, f"{_path(workspace)}:restore")

    async def transfer(self, workspace: str, *, user: str) -> Workspace:
        """Make another member its owner."""
        return await self._transport.call(
            Workspace, "POST", f"{_path(workspace)}:transfer", body={"user": user}
        )

    async def join(self, workspace: str) -> None:
        """Accept an invitation."""
        await self._transport.send("POST", f"{_path(workspace)}:join")

    async def decline(self, workspace: str) -> None:
        """Decline an invitation."""
        await self._transport.send("POST", f"{_path(workspace)}:decline")

    async def list_members(
        self, workspace: str, *, limit: int | None = None, cursor: str | None = None
    ) -> AsyncPage[WorkspaceMember]:
        """Its members."""
        query = given(limit=limit, cursor=cursor)
        return await fetch_page(self._transport, WorkspaceMember, f"{_path(workspace)}/members", query)

    async def add_member(
        self,
        workspace: str,
        *,
        user: str,
        role: str | None = None,
        invite: bool | None = None,
        idempotency_key: str | None = None,
    ) -> WorkspaceMember:
        """Let a user in as `admin`, `member` or `viewer`; with `invite` the user accepts first."""
        body = given(user=user, role=role, invite=invite)
        return await self._transport.create(
            WorkspaceMember, f"{_path(workspace)}/members", body=body, idempotency_key=idempotency_key
        )

    async def update_member(
        self, workspace: str, user: str, *, role: str | None = None, status: str | None = None
    ) -> WorkspaceMember:
        """Another role, or `suspended` and `active`."""
        body = given(role=role, status=status)
        path = f"{_path(workspace)}/members/{segment(user)}"
        return await self._transport.call(WorkspaceMember, "PATCH", path, body=body)

    async def remove_member(self, workspace: str, user: str) -> None:
        """End a membership."""
        await self._transport.send("DELETE", f"{_path(workspace)}/members/{segment(user)}")


def _path(workspace: str) -> str:
    return f"/v1/workspaces/{segment(workspace)}"
