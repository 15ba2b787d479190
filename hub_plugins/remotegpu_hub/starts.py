"""`/hub/remotegpu/…`: what the hub's form and its page of a pending start ask of the user's spawner.

``user`` and ``server`` in the query say whose: an admin may look after the server of somebody else.
"""

from __future__ import annotations

import json
from typing import Any

from jupyterhub.handlers import BaseHandler
from jupyterhub.scopes import needs_scope
from jupyterhub.spawner import SpawnException
from tornado import web


class _SpawnerHandler(BaseHandler):
    """Answers in JSON with what one spawner says."""

    async def answer(self) -> None:
        """Of the server that the query names."""
        await self._answer(
            user_name=self.get_query_argument("user", "") or self.current_user.name,
            server_name=self.get_query_argument("server", ""),
        )

    @needs_scope("servers")
    async def _answer(self, user_name: str, server_name: str) -> None:
        user = self.find_user(user_name)
        known = user is not None and (not server_name or server_name in user.orm_spawners)
        spawner = user.get_spawner(server_name) if known else None
        if not hasattr(spawner, "explain"):
            raise web.HTTPError(404)  # another spawner's
        try:
            answer = await self.ask(spawner)
        except SpawnException as refused:
            self.set_status(refused.status_code)
            answer = {"message": refused.jupyterhub_message}
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(answer))

    async def ask(self, spawner: Any) -> dict[str, Any]:
        """What this page wants to know."""
        raise NotImplementedError


class ExplainHandler(_SpawnerHandler):
    """`GET explain`: what would happen if the options form were sent now. Changes nothing."""

    @web.authenticated
    async def get(self) -> None:
        await self.answer()

    async def ask(self, spawner: Any) -> dict[str, Any]:
        query = {
            name: [value.decode(errors="replace") for value in values]
            for name, values in self.request.query_arguments.items()
        }
        found: dict[str, Any] = await spawner.explain(query)
        return found


class WaitHandler(_SpawnerHandler):
    """`GET wait`: why a pending start waits and what would start now. `POST wait`: take that instead.

    The body of a POST is ``{"fields": {name: [values]}}``, the fields of the form that differ.
    """

    @web.authenticated
    async def get(self) -> None:
        await self.answer()

    @web.authenticated
    async def post(self) -> None:
        await self.answer()

    async def ask(self, spawner: Any) -> dict[str, Any]:
        if self.request.method == "POST":
            spawner.ask_instead(self._fields())
        found: dict[str, Any] = spawner.waiting()
        return found

    def _fields(self) -> dict[str, list[str]]:
        try:
            fields = json.loads(self.request.body)["fields"]
            return {str(name): [str(value) for value in values] for name, values in fields.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise web.HTTPError(400, 'Send {"fields": {name: [values]}}.') from None
