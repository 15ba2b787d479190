"""Two agents on one machine, the second in its own network namespace: two users at once, and a cell of a
notebook on the first that runs on the second.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e.stack import Stack, containers, hub_page, until
from playwright.sync_api import Browser

import remotegpu
from remotegpu.types.tasks import Task

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(600)]

NAMESPACE = "rgpu-e2e"
# Not rgpu…: the agents' firewall takes interfaces of that name for workloads.
OUTSIDE, INSIDE = "e2e-outside", "e2e-inside"
HOST_SIDE, NAMESPACE_SIDE = "10.214.7.1", "10.214.7.2"
PASSWORD = "correct horse battery"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A network namespace with one wire to this machine."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and iproute2")
    _ip("netns", "add", NAMESPACE)
    try:
        _ip("link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE, "netns", NAMESPACE)
        _ip("address", "add", f"{HOST_SIDE}/30", "dev", OUTSIDE)
        _ip("link", "set", OUTSIDE, "up")
        _ip("-n", NAMESPACE, "address", "add", f"{NAMESPACE_SIDE}/30", "dev", INSIDE)
        _ip("-n", NAMESPACE, "link", "set", INSIDE, "up")
        _ip("-n", NAMESPACE, "link", "set", "lo", "up")
        _ip("-n", NAMESPACE, "route", "add", "default", "via", HOST_SIDE)
        yield NAMESPACE
    finally:
        _ip("netns", "del", NAMESPACE)


@pytest.fixture(scope="module")
def second_host(stack: Stack, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    status = stack.status()
    if status["runtime"] != "docker":
        pytest.skip(f"make up runs workloads as processes here: {status['runtime_detail']}")
    state = tmp_path_factory.mktemp("second-agent")
    url = status["urls"]["server_for_notebooks"]
    with stack.admin() as admin:
        admin.hosts.create(name="second")
        token = admin.hosts.create_enrollment_token("second")
        token_file = state / "token"
        token_file.write_text(token.secret)
        token_file.chmod(0o600)
        agent = [
            "ip", "netns", "exec", namespace,
            str(Path(sys.executable).with_name("remotegpu-agent")),
        ]  # fmt: skip
        subprocess.run(
            [*agent, "enroll", "--url", url, "--token-file", str(token_file), "--state-dir", str(state)],
            check=True,
            timeout=60,
        )
        with (state / "agent.log").open("wb") as log:
            process = subprocess.Popen(
                [*agent, "run", "--url", url, "--state-dir", str(state), "--runtime", "docker",
                 "--simulate-gpus", "1xA100-80GB", "--address", HOST_SIDE,
                 "--home-root", str(state / "homes")],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        try:
            until("the second host is ready", lambda: admin.hosts.get("second").ready)
            yield "second"
            admin.hosts.cordon("second")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def test_two_agents_serve_two_users_at_once_with_exclusive_gpus(stack: Stack, second_host: str) -> None:
    with stack.admin() as admin:
        hosts = stack.host_ids()
        before = containers(hosts)
        first_gpus = sum(1 for gpu in admin.gpus.list(free=True) if gpu.host_name != second_host)
        users = {}
        for name, gpus in (("one", first_gpus), ("two", 1)):
            created = admin.users.create(username=f"user-{name}", password="correct horse battery")
            with remotegpu.Client(url=stack.server_url) as anonymous:
                token = anonymous.auth.login(username=created.user.username, password="correct horse battery")
            client = remotegpu.Client(url=stack.server_url, token=token.secret)
            image = next(image.name for image in client.images.list() if image.runtime == "docker")
            environment = client.environments.create(name="default", image=image, gpus=gpus, queue=False)
            users[name] = (client, environment)
        ready = {
            name: client.environments.wait_ready(env.id, timeout_s=120)
            for name, (client, env) in users.items()
        }

        assert ready["two"].host_name == second_host, "the first host is full"
        assert ready["one"].host_name != second_host
        uuids = [gpu.uuid for environment in ready.values() for gpu in environment.allocated_gpus]
        assert len(uuids) == len(set(uuids)) == first_gpus + 1

        client, _ = users["two"]
        with pytest.raises(remotegpu.NoCapacity):
            client.environments.create(name="more", image=ready["two"].image, gpus=1, queue=False)

        for client, environment in users.values():
            client.environments.stop(environment.id)
        for client, environment in users.values():
            client.environments.wait_stopped(environment.id, timeout_s=60)
            client.close()
        assert all(gpu.free for gpu in admin.gpus.list())
        assert containers(hosts) == before


BEFORE = """\
%load_ext remotegpu_notebooks
import os
table = os.urandom(2**20)  # more than fits into a script: it is sent before
"""
CELL = """\
%%remotegpu --gpus 1
import os, time
step = 0
while not os.path.exists("/tmp/go"):
    step += 1
    print("step", step, "on", os.environ["REMOTEGPU_ATTEMPT_ID"], flush=True)
    time.sleep(0.25)
answer = len(table) // 2**20 + 41
weights = os.urandom(6 * 2**20)  # more than fits into the output: it comes back as a file
"""
AFTERWARDS = """\
import remotegpu
task = remotegpu.Client().tasks.list(name="cell").items[0]
found = remotegpu.attach(task.id).result(timeout=60)
print("answer", found["answer"], len(found["weights"]))
"""


@pytest.mark.browser
def test_cell_runs_on_another_host_and_its_result_waits_for_the_browser_to_come_back(
    stack: Stack, browser: Browser, second_host: str
) -> None:
    with stack.admin() as admin:
        ida = admin.users.create(username="ida", password=PASSWORD).user.username
        with hub_page(browser, stack, ida, PASSWORD) as user:
            user.log_in()
            user.page.goto(f"{stack.hub_url}/hub/spawn")
            # Only containers of the first host reach the hub: the second's firewall is in its namespace.
            with _cordoned(admin, second_host):
                user.page.click("#spawn_form input[type=submit], #spawn_form button[type=submit]")
                user.await_lab()
            user.write_notebook("elsewhere.ipynb", BEFORE, CELL, AFTERWARDS)
            user.open_notebook("elsewhere.ipynb")
            user.run_cell(0)
            here = next(iter(admin.environments.list(owner=ida))).host_name
            assert here is not None
            with _cordoned(admin, here):
                cell = user.start_cell(1)
                until("output streams into the cell", lambda: "step 3 on" in cell.inner_text())
            (task,) = admin.tasks.list(owner=ida)
            assert task.status == "running"
            (attempt,) = admin.tasks.attempts(task.id)
            assert attempt.host_name == second_host != here
            assert f"on {attempt.id}" in cell.inner_text()
            assert len(task.hosts[0].allocated_gpus) == 1
            user.screenshot("notebook-cell-elsewhere")
            user.end_kernels()
        container = _container_of(task)
        assert admin.tasks.get(task.id).status == "running", "nobody looks at it any more"
        subprocess.run(["docker", "exec", container, "touch", "/tmp/go"], check=True, timeout=60)
        assert admin.tasks.wait(task.id, timeout_s=60, progress=False).status == "succeeded"

        with hub_page(browser, stack, ida, PASSWORD) as user:
            user.log_in()
            user.open_notebook("elsewhere.ipynb")
            assert f"answer 42 {6 * 2**20}" in user.run_cell(2)
            user.screenshot("notebook-cell-attached")
            user.stop_default_server()
            assert user.failures == []


@contextmanager
def _cordoned(admin: remotegpu.Client, host: str) -> Iterator[None]:
    """Nothing new is placed there meanwhile."""
    admin.hosts.cordon(host)
    try:
        yield
    finally:
        admin.hosts.uncordon(host)


def _container_of(task: Task) -> str:
    """The one container of a task's attempt."""
    (name,) = [one for one in containers({task.hosts[0].host_id}) if "att-" in one]
    return name
