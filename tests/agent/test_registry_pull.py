"""Images from a real registry, through a real engine, over a way that can be bad."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_process import clean_up, docker, get
from joined_host import JoinedHost, until
from local_registry import Registry, Wire, free_port

import remotegpu
from remotegpu.types.environments import Environment
from remotegpu_server.testing import LiveServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

LAYERS_MB = [20, 20, 20]
SLOW = 15 * 2**20
PULL_SILENCE_S = 3.0


@pytest.fixture(scope="module")
def contents(test_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the images: the web server of the other tests' image, as a build context."""
    folder = tmp_path_factory.mktemp("context")
    container = docker("create", test_image)
    try:
        archive = subprocess.run(["docker", "export", container], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    finally:
        docker("rm", container)
    return folder


@pytest.fixture(scope="module")
def registry(contents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("no docker-registry: install the distribution's package")
    made = Registry(tmp_path_factory.mktemp("registry") / "registry")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def first_digest(registry: Registry, contents: Path) -> str:
    return registry.push(contents, "lab:1", content="first", megabytes=LAYERS_MB)


@pytest.fixture
def wire(registry: Registry, first_digest: str) -> Iterator[Wire]:
    made = Wire(registry.port)
    yield made
    made.close()
    prefix = f"127.0.0.1:{made.port}/"
    here = docker("images", "--digests", "--format", "{{.Repository}} {{.ID}}").splitlines()
    for image_id in {line.split()[1] for line in here if line.startswith(prefix)}:
        docker("image", "rm", "-f", image_id)


@dataclass
class Site:
    """A server, its admin, one host with two simulated GPUs, and the wire to the registry."""

    admin: remotegpu.Client
    host: JoinedHost
    wire: Wire

    def allow(self, reference: str) -> str:
        self.admin.images.create(name="lab", reference=reference)
        return "lab"

    def create(self, name: str = "default") -> Environment:
        return self.admin.environments.create(name=name, image="lab", gpus=1, memory_bytes=2**28)

    def await_pulling(self, environment_id: str) -> Environment:
        def pulling() -> Environment | None:
            seen = self.admin.environments.get(environment_id)
            return seen if seen.reason == "pulling" and seen.progress_percent else None

        found = until("the image is being pulled", pulling)
        assert found is not None
        return found

    def await_failed(self, environment_id: str) -> Environment:
        def failed() -> Environment | None:
            seen = self.admin.environments.get(environment_id)
            return seen if seen.status == "failed" else None

        found = until("the start fails", failed)
        assert found is not None
        return found

    def await_free_gpus(self, timeout_s: float) -> float:
        began = time.monotonic()
        until("its GPU is free", lambda: all(gpu.free for gpu in self.admin.gpus.list()), timeout_s=timeout_s)
        return time.monotonic() - began

    def stop(self, environment_id: str) -> None:
        self.admin.environments.stop(environment_id)
        self.admin.environments.wait_stopped(environment_id, timeout_s=30)


@pytest.fixture
def site(live_server: LiveServer, wire: Wire, tmp_path: Path) -> Iterator[Site]:
    with remotegpu.Client(live_server.url, "") as anonymous:
        token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with remotegpu.Client(live_server.url, token.secret) as admin:
        options = [
            "--runtime",
            "docker",
            "--simulate-gpus",
            "2xA100-80GB",
            "--pull-silence",
            str(PULL_SILENCE_S),
        ]
        host = JoinedHost(live_server, admin, "gpu-host", tmp_path / "state", options)
        host.start(admin)
        try:
            yield Site(admin, host, wire)
        finally:
            host.stop()
            clean_up(host.id, "docker")


def test_pull_shows_its_progress_and_pins_the_image(site: Site, first_digest: str) -> None:
    site.wire.bytes_per_s = SLOW
    site.allow(site.wire.image("lab:1"))
    made = site.create()
    percents: list[int] = []
    while (seen := site.admin.environments.get(made.id)).status != "running":
        assert seen.status in ("pending", "starting"), seen.message
        if seen.reason == "pulling" and seen.progress_percent is not None:
            percents.append(seen.progress_percent)
            assert f"{seen.progress_percent} %" in seen.message
        time.sleep(0.05)
    assert percents == sorted(percents), "progress never goes back"
    assert len(set(percents)) >= 5
    assert percents[0] < 50 < percents[-1] <= 100
    assert seen.progress_percent is None
    assert get(seen.address, "/env/CONTENT") == "first"
    assert site.admin.images.get("lab").digest == first_digest
    site.stop(made.id)


@pytest.mark.parametrize("here", ["nothing", "moved"])
def test_second_start_runs_the_pinned_content_though_the_tag_moved(
    site: Site, registry: Registry, contents: Path, first_digest: str, here: str
) -> None:
    """Whether this host has no image of that name any more, or has what the tag means now."""
    tag = f"moving-{here}:1"
    pinned = registry.push(contents, tag, content="old", megabytes=[1])
    reference = site.wire.image(tag)
    site.allow(reference)
    made = site.create()
    first = site.admin.environments.wait_ready(made.id, timeout_s=60)
    assert get(first.address, "/env/CONTENT") == "old"
    site.stop(made.id)

    docker("image", "rm", reference)
    newer = registry.push(contents, tag, content="new", megabytes=[1])
    if here == "moved":
        docker("pull", "-q", reference)
    site.admin.environments.start(made.id)
    second = site.admin.environments.wait_ready(made.id, timeout_s=60)
    assert get(second.address, "/env/CONTENT") == "old"
    assert site.admin.images.get("lab").digest == pinned
    site.stop(made.id)

    site.admin.images.update("lab", digest=newer)
    site.admin.environments.start(made.id)
    third = site.admin.environments.wait_ready(made.id, timeout_s=60)
    assert get(third.address, "/env/CONTENT") == "new"
    site.stop(made.id)


@pytest.mark.parametrize("name", ["lab:no-such-tag", "no-such-repository:1"])
def test_image_that_the_registry_does_not_know_fails_by_name_and_frees_the_gpu(site: Site, name: str) -> None:
    reference = site.wire.image(name)
    site.allow(reference)
    failed = site.await_failed(site.create().id)
    assert failed.reason == "image_not_found"
    assert reference in failed.message
    assert "the registry does not know it" in failed.message
    site.await_free_gpus(10)


def test_registry_that_does_not_answer_fails_the_start_and_frees_the_gpu(site: Site) -> None:
    reference = f"127.0.0.1:{free_port()}/lab:1"
    site.allow(reference)
    failed = site.await_failed(site.create().id)
    assert failed.reason == "image_pull_failed"
    assert f"The registry of {reference} cannot be reached" in failed.message
    site.await_free_gpus(10)


def test_registry_that_goes_silent_fails_the_start_and_a_new_one_succeeds(site: Site) -> None:
    site.wire.bytes_per_s = SLOW
    site.wire.silent_after = 10 * 2**20
    site.allow(site.wire.image("lab:1"))
    made = site.create()
    site.await_pulling(made.id)
    failed = site.await_failed(made.id)
    assert failed.reason == "image_pull_failed"
    assert "stood still for 3 s" in failed.message
    assert site.wire.image("lab:1") in failed.message
    site.await_free_gpus(10)

    site.wire.silent_after = site.wire.bytes_per_s = None
    site.admin.environments.start(made.id)
    ready = site.admin.environments.wait_ready(made.id, timeout_s=60)
    assert get(ready.address, "/env/CONTENT") == "first"
    site.stop(made.id)


def test_stop_cancels_the_pull_and_frees_the_gpu_at_once(site: Site) -> None:
    site.wire.bytes_per_s = SLOW / 10
    site.allow(site.wire.image("lab:1"))
    made = site.create()
    site.await_pulling(made.id)
    site.admin.environments.stop(made.id)
    assert site.await_free_gpus(10) < 3
    assert site.admin.environments.get(made.id).status == "stopped"
    until("the engine lets go of the registry", lambda: site.wire.open_connections == 0, timeout_s=10)
    assert site.wire.carried < sum(LAYERS_MB) * 2**20 / 2


def test_two_environments_with_one_image_pull_it_once(site: Site) -> None:
    site.wire.bytes_per_s = 2 * SLOW
    site.allow(site.wire.image("lab:1"))
    made = [site.create("one"), site.create("two")]
    for environment in made:
        site.await_pulling(environment.id)
    for environment in made:
        ready = site.admin.environments.wait_ready(environment.id, timeout_s=60)
        assert get(ready.address, "/env/CONTENT") == "first"
    assert site.wire.carried < 1.1 * sum(LAYERS_MB) * 2**20
    for environment in made:
        site.stop(environment.id)
