"""`GET /hub/remotegpu/explain`: what would happen if the options form were sent now. Changes nothing."""

from __future__ import annotations

import json
from typing import Any

from jupyterhub.handlers import BaseHandler
from jupyterhub.scopes import needs_scope
from tornado import web


class ExplainHandler(BaseHandler):
    """Answers the options form with quota and capacity as its user has them.

    ``user`` and ``server`` in the query say whose form it is: an admin may fill in the form of somebody else.
    """

    @web.authenticated
    async def get(self) -> None:
        name = self.get_query_argument("user", "") or self.current_user.name
        await self._answer(user_name=name, server_name=self.get_query_argument("server", ""))

    @needs_scope("servers")
    async def _answer(self, user_name: str, server_name: str) -> None:
        user = self.find_user(user_name)
        known = user is not None and (not server_name or server_name in user.orm_spawners)
        explain = getattr(user.get_spawner(server_name), "explain", None) if known else None
        if explain is None:
            raise web.HTTPError(404)
        query = {
            name: [value.decode(errors="replace") for value in values]
            for name, values in self.request.query_arguments.items()
        }
        answer: dict[str, Any] = await explain(query)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(answer))
