"""`GET /hub/remotegpu/explain`: what would happen if the options form were sent now. Changes nothing."""

from __future__ import annotations

import json
from typing import Any

from jupyterhub.handlers import BaseHandler
from tornado import web

from remotegpu import AsyncClient, errors

GIB = 2**30


class ExplainHandler(BaseHandler):
    """Answers the options form; the signed-in user's own view of quota and capacity."""

    @web.authenticated
    async def get(self) -> None:
        client: AsyncClient = self.authenticator.client().on_behalf_of(self.current_user.name)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(await self._answer(client)))

    async def _answer(self, client: AsyncClient) -> dict[str, Any]:
        try:
            wanted: dict[str, Any] = {
                "image": self.get_query_argument("image", ""),
                "gpus": int(self.get_query_argument("gpus", "") or 0),
                "gpu_model": self.get_query_argument("gpu_model", "") or None,
                "cpus": float(self.get_query_argument("cpus", "") or 1),
                "memory_bytes": int(float(self.get_query_argument("memory_gib", "") or 2) * GIB),
            }
        except (ValueError, OverflowError):
            return {"outcome": "refused", "message": "GPUs, CPUs and memory must be numbers."}
        try:
            capacity = await client.capacity.get()
            explanation = await client.placements.explain(**wanted)
        except errors.ApiError as error:
            return {"outcome": "refused", "message": str(error)}
        except errors.ClientError as error:
            self.log.warning("the options form gets no explanation: %s", error)
            return {"outcome": "unknown", "message": "The RemoteGPU server does not answer at the moment."}
        return {
            "outcome": str(explanation.outcome),
            "message": explanation.message,
            "home_note": explanation.home_note,
            "models": [
                {
                    "model": model.model,
                    "text": f"{model.model}: {model.free} of {model.total} free"
                    + (" (simulated)" if model.simulated else ""),
                }
                for model in capacity.gpu_models
            ],
        }
