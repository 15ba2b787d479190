"""SDK and server agree: every method of the client works on the real app; every endpoint has one.

A noun's journey is ``journey_<noun>.py``: ``async def drive(world)``. Add it to ``JOURNEYS``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, get_type_hints

import journey_alerts
import journey_audit
import journey_customers
import journey_environments
import journey_events
import journey_health
import journey_hosts
import journey_images
import journey_metrics
import journey_notifications
import journey_queue
import journey_quotas
import journey_reservations
import journey_settings
import journey_ssh_keys
import journey_tasks
import journey_tokens
import journey_usage
import journey_users
import journey_volumes
import journey_webhooks
import journey_workspaces
import pytest
from fastapi import FastAPI
from recording import RESOURCES, Recorder, World

import remotegpu
from remotegpu_server.testing import PASSWORD, Actors

JOURNEYS = (
    journey_health.drive,
    journey_customers.drive,
    journey_users.drive,
    journey_tokens.drive,
    journey_workspaces.drive,
    journey_notifications.drive,
    journey_alerts.drive,
    journey_webhooks.drive,
    journey_images.drive,
    journey_hosts.drive,
    journey_quotas.drive,
    journey_ssh_keys.drive,
    journey_settings.drive,
    journey_environments.drive,
    journey_volumes.drive,
    journey_tasks.drive,
    journey_usage.drive,
    journey_metrics.drive,
    journey_queue.drive,
    journey_reservations.drive,
    journey_hosts.drive_last,
    journey_events.drive,
    journey_audit.drive,
)
"""In this order: later ones use the host and the images of earlier ones."""


WORDS = {"from": "begin", "to": "end", "label": "labels", "csv": "text"}
"""Arguments that Python calls otherwise."""
WORKS_OUT = {"task_inputs.upload": {"size_bytes", "offset"}}
"""Arguments of an endpoint that a method for whole files finds by itself."""
STREAMS = {
    "environments.follow",
    "environments.watch",
    "events.watch",
    "hosts.watch",
    "notifications.watch",
    "tasks.watch",
}


async def test_every_method_works_and_every_endpoint_has_one(app: FastAPI, actors: Actors) -> None:
    recorder = Recorder(app)
    root = await actors.admin()
    anonymous = recorder.client()
    world = World(
        recorder=recorder,
        actors=actors,
        root=root,
        admin=recorder.client((await anonymous.auth.login(username="root", password=PASSWORD)).secret),
        hub=recorder.client(await actors.hub()),
        anonymous=anonymous,
        user=recorder.client((await actors.user("ada")).secret),
    )
    assert (await world.admin.me.get()).user.id == root.id
    for drive in JOURNEYS:
        await drive(world)
    await world.admin.auth.logout()
    with pytest.raises(remotegpu.TokenInvalid):
        await world.admin.me.get()

    # A stream has no end, and this transport hands over whole answers: see test_event_stream.py.
    assert recorder.methods == all_methods() - STREAMS
    assert recorder.routes == routes_of(app)
    left_out = {
        f"{method}({WORDS.get(name, name)})"
        for method, routes in recorder.asked.items()
        for route in routes
        for name in inputs_of(app, *route) - WORKS_OUT.get(method, set())
        if WORDS.get(name, name) not in arguments_of(method)
    }
    assert not left_out, "the API takes these, and the methods do not"


def inputs_of(app: FastAPI, verb: str, path: str) -> set[str]:
    """Names of the fields of the body and of the query of an endpoint."""
    document = app.openapi()
    operation = document["paths"][path][verb.lower()]
    names = {one["name"] for one in operation.get("parameters", []) if one["in"] == "query"}
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return names | _properties(document, content.get("schema", {}))


def _properties(document: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return set(schema.get("properties", {})).union(
        *(_properties(document, one) for one in schema.get("anyOf", []) + schema.get("oneOf", []))
    )


@functools.cache
def _client() -> remotegpu.AsyncClient:
    """One for all questions about its methods: making one takes a while."""
    return remotegpu.AsyncClient("http://remotegpu.test", "")


def arguments_of(method: str) -> set[str]:
    """Names of a method's arguments; of one that takes the wire type itself, also its fields."""
    name, verb = method.split(".")
    function = getattr(type(getattr(_client(), name)), verb)
    hints = get_type_hints(function, vars(sys.modules[function.__module__]))
    whole = [hints[name] for name in hints if name != "return" and hasattr(hints[name], "model_fields")]
    return set(inspect.signature(function).parameters).union(*(kind.model_fields for kind in whole))


def all_methods() -> set[str]:
    client = _client()
    return {
        f"{name}.{method}"
        for name in RESOURCES
        for method, value in vars(type(getattr(client, name))).items()
        if inspect.isfunction(value) and not method.startswith("_")
    }


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
