"""Starting, refusing, stopping: through REST, the form and the progress page."""

from __future__ import annotations

import httpx
import pytest
from hub.stack import Hub, Stack, until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(180)]


def test_spawn_through_rest_gives_a_gpu_and_stop_frees_it(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    free = stack.gpus_free()
    assert hub.spawn(username, image="quick", gpus=1).status_code in (201, 202)
    model = hub.await_ready(username)
    environment = stack.environment(username)
    assert environment is not None
    assert len(environment.allocated_gpus) == 1
    assert model["user_options"]["profile"] == "1x GPU / quick"
    assert model["state"]["environment_id"] == environment.id
    shown = httpx.get(f"{hub.url}/user/{username}/api").json()
    assert shown["environ"]["JUPYTERHUB_USER"] == username
    assert shown["environ"]["REMOTEGPU_SIMULATED_GPUS"] == environment.allocated_gpus[0].uuid
    assert shown["environ"]["MEM_LIMIT"] == str(2 * 2**30)

    assert hub.delete(username).status_code in (202, 204)
    hub.await_stopped(username)
    assert until("the GPU is free", lambda: stack.gpus_free() == free)
    stopped = stack.environment(username)
    assert stopped is not None
    assert stopped.status == "stopped"
