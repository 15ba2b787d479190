"""A site's configuration for DockerSpawner, run with nothing but the class changed."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from bs4 import BeautifulSoup
from dockerspawner import DockerSpawner
from hub.stack import PLAIN, Hub, Stack
from traitlets.config import Config

pytestmark = [pytest.mark.hub, pytest.mark.timeout(180)]

SITE = """
c = get_config()  # noqa: F821
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.DockerSpawner.image = "process/quick"
c.DockerSpawner.allowed_images = {"Quick one": "process/quick", "Slow one": "process/slow:latest"}
c.DockerSpawner.mem_limit = "1G"
c.DockerSpawner.cpu_limit = 1.5
c.DockerSpawner.environment = {"SITE": "lab-7", "FOR": lambda spawner: spawner.user.name}
c.DockerSpawner.name_template = "{prefix}-{username}--{servername}"
c.DockerSpawner.volumes = {"jupyterhub-{username}": "/home/jovyan/work"}
c.DockerSpawner.notebook_dir = "~"
c.DockerSpawner.network_name = "jupyterhub"
c.DockerSpawner.remove = True
"""


@pytest.fixture(scope="module")
def hub(make_hub: Callable[..., Hub]) -> Hub:
    site = SITE.replace('"dockerspawner.DockerSpawner"', '"remotegpu"')
    return make_hub(plain=site + PLAIN.replace("c = get_config()  # noqa: F821\n", ""))


def test_every_setting_of_the_site_is_one_of_dockerspawners() -> None:
    config = Config()
    exec(SITE, {"get_config": lambda: config})  # noqa: S102  the way in which the hub reads it
    assert set(config.DockerSpawner) <= set(DockerSpawner.class_trait_names(config=True))


def test_site_runs_with_the_class_changed_and_is_told_what_has_no_meaning(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    hub.spawn(username)
    hub.await_ready(username)
    environment = stack.environment(username, f"jupyter-{username}")
    assert environment is not None
    assert environment.image_reference == "process/quick:latest"
    assert environment.memory_bytes == 2**30
    assert environment.cpus == 1.5
    environ = httpx.get(f"{hub.url}/user/{username}/api").json()["environ"]
    assert environ["SITE"] == "lab-7"
    assert environ["FOR"] == username
    assert environ["JUPYTERHUB_ROOT_DIR"] == "~"
    (line,) = [line for line in hub.process.log.read_text().splitlines() if "not carried over" in line]
    assert "volumes, network_name, remove" in line
    hub.delete(username)
    hub.await_stopped(username)

    hub.spawn(username, "second", image="Slow one")
    hub.await_ready(username, "second")
    second = stack.environment(username, f"jupyter-{username}--second".replace("--", "-"))
    assert second is not None
    assert second.image == "slow"
    hub.delete(username, "second")
    hub.await_stopped(username, "second")


def test_allowed_images_are_the_form_and_the_limit(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    with hub.signed_in(username) as person:
        form = BeautifulSoup(person.http.get("/hub/spawn").text, "html.parser")
        offered = [option.get_text() for option in form.select("select[name=image] option")]
        assert offered == ["Quick one", "Slow one"]
    refused = hub.spawn(username, image="never")
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert "not offered here. Choose one of: quick, slow." in refused.json()["message"]
