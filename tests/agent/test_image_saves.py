"""A running container becomes an image on a real engine: with its files, without any of its own settings."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess, clean_up, docker, get
from agent_workloads import absent
from joined_host import JoinedHost
from scripted_server import ScriptedServer

import remotegpu
from remotegpu.types.agent import ImageSaveRequest
from remotegpu.types.image_saves import ImageSaveReason
from remotegpu_agent import image_export
from remotegpu_agent.runtime import SaveFailed
from remotegpu_server.testing import LiveServer

pytestmark = pytest.mark.docker

BASE = "remotegpu-agent-test:with-settings"
SAVED = "remotegpu/saved:sav-test"
SECRETS = {"REMOTEGPU_TOKEN": "rgw_0cafe5ecret0", "DATABASE_PASSWORD": "hunter2-of-nobody"}
PLAIN = {
    "REMOTEGPU_NOTE": "platform-of-nobody",
    "MY_PLAIN_SETTING": "plain-value-of-the-environment",
}
KEPT = ("Env", "User", "WorkingDir", "Cmd", "Entrypoint", "Labels", "ExposedPorts")


@pytest.fixture
def base(test_image: str) -> Iterator[str]:
    """The test image with every setting that is kept, and signs that the engine's parser might eat."""
    made = docker("create", test_image).strip()
    settings = [
        'ENV AWKWARD="a \\"b\\" \\$HOME \\\\ c=d"',
        "ENV PATH=/usr/bin",
        "LABEL org.remotegpu.endpoints=ssh=2222",
        'LABEL "with space"="1 \\$x"',
        "EXPOSE 8888/tcp",
        "WORKDIR /tmp",
        "USER 1000:1000",
        'ENTRYPOINT ["/server"]',
        'CMD ["ignored $HOME"]',
    ]
    docker("commit", *(word for one in settings for word in ("-c", one)), made, BASE)
    docker("rm", made)
    yield BASE
    for image in (SAVED, BASE):
        docker("image", "rm", "-f", image, check=False)


def request(save_id: str = "sav-test", **changes: Any) -> ImageSaveRequest:
    fields: dict[str, Any] = {
        "id": save_id,
        "workload_id": "env-1",
        "generation": 1,
        "reference": SAVED,
        "max_bytes": 2**33,
    }
    return ImageSaveRequest(**fields | changes)


def config_of(image: str) -> dict[str, Any]:
    (found,) = json.loads(docker("image", "inspect", image))
    config: dict[str, Any] = found["Config"]
    return config


def container_of(agent: AgentProcess) -> str:
    return docker("ps", "-q", "--filter", f"label=org.remotegpu.host={agent.server.host_id}").strip()


def images() -> set[str]:
    return set(docker("image", "ls", "-a", "-q", "--filter", "reference=remotegpu/saved").split())


def test_saved_image_has_the_files_and_the_base_settings_and_starts(
    docker_agent: AgentProcess, server: ScriptedServer, base: str
) -> None:
    docker_agent.start()
    wanted = docker_agent.workload(image_reference=base, env=PLAIN)
    server.desire(wanted)
    running = server.until_observed("env-1", "running")
    assert get(running.address, "/write") == "written"
    docker("cp", __file__, f"{container_of(docker_agent)}:/tmp/installed")
    server.desire(wanted, saves=(request(),))
    done = server.until_saved("sav-test")
    assert done.image_id is not None, done.detail
    assert done.progress_bytes > 2**19
    before, after = config_of(base), config_of(SAVED)
    assert {key: after.get(key) for key in KEPT} == {key: before.get(key) for key in KEPT}
    server.desire(absent(wanted))
    server.until_observed("env-1", "absent")
    again = docker_agent.workload(image_reference=done.image_id, generation=2)
    server.desire(again)
    restarted = server.until_observed("env-1", "running")
    assert get(restarted.address, "/exists/tmp/installed") == "yes"
    assert get(restarted.address, "/read") == "kept"
    server.desire(absent(again))
    server.until_observed("env-1", "absent")


def test_nothing_of_the_environment_s_settings_or_mounts_is_anywhere_in_the_image(
    docker_agent: AgentProcess, server: ScriptedServer, base: str
) -> None:
    docker_agent.start()
    secret_env = docker_agent.workload().secret_env | SECRETS
    wanted = docker_agent.workload(
        image_reference=base,
        env=PLAIN,
        secret_env=secret_env,
        authorized_keys=["ssh-ed25519 AAAAkeyofada ada"],
    )
    server.desire(wanted)
    server.until_observed("env-1", "running")
    (home,) = (docker_agent.state_dir / "homes").iterdir()
    (home / "notes-of-ada.txt").write_text("private")
    container = container_of(docker_agent)
    (live,) = json.loads(docker("inspect", container))
    server.desire(wanted, saves=(request(),))
    assert server.until_saved("sav-test").image_id is not None
    archive = subprocess.run(["docker", "save", SAVED], capture_output=True, check=True).stdout
    told = docker("image", "inspect", SAVED) + docker("history", "--no-trunc", SAVED)
    base_env = set(config_of(base)["Env"])
    own = [entry for entry in live["Config"]["Env"] if entry not in base_env]
    assert len(own) > len(SECRETS), "the test must look for something"
    values = [entry.partition("=")[2] for entry in own]
    needles = [*own, *SECRETS, *(one for one in values if len(one) > 6), container, server.host_id]
    needles += ["REMOTEGPU_", "AAAAkeyofada", "org.remotegpu.workload", "notes-of-ada"]
    found = [one for one in needles if one in told or one.encode() in archive]
    assert found == []


def test_file_system_larger_than_allowed_is_refused_and_leaves_no_image(
    docker_agent: AgentProcess, server: ScriptedServer, base: str
) -> None:
    docker_agent.start()
    wanted = docker_agent.workload(image_reference=base)
    server.desire(wanted)
    server.until_observed("env-1", "running")
    before = images()
    server.desire(wanted, saves=(request(max_bytes=4096),))
    ended = server.until_saved("sav-test")
    assert (ended.reason, ended.image_id) == (ImageSaveReason.TOO_LARGE, None)
    assert images() == before


def test_save_of_what_does_not_run_fails_with_words(
    docker_agent: AgentProcess, server: ScriptedServer
) -> None:
    docker_agent.start()
    server.desire(saves=(request(),))
    ended = server.until_saved("sav-test")
    assert ended.reason == ImageSaveReason.HOST_FAILED
    assert "does not run" in ended.detail


def test_save_that_is_not_wanted_any_more_is_cancelled_and_leaves_no_image(
    docker_agent: AgentProcess, server: ScriptedServer, base: str
) -> None:
    docker_agent.start()
    wanted = docker_agent.workload(image_reference=base, memory_bytes=2**30)
    server.desire(wanted)
    server.until_observed("env-1", "running")
    before = images()
    big = subprocess.Popen(["head", "-c", "1500000000", "/dev/zero"], stdout=subprocess.PIPE)
    _copy_into(container_of(docker_agent), big)
    server.desire(wanted, saves=(request(),))
    server.until("it has begun", lambda: any(one.progress_bytes for _, one in server.save_reports))
    server.desire(wanted)
    server.until("the agent has seen it", lambda: "is not wanted any more" in docker_agent.log)
    assert not any(one.image_id or one.reason for _, one in server.save_reports)
    assert images() == before
    server.desire(wanted, saves=(request("sav-next", max_bytes=4096),))
    assert server.until_saved("sav-next").reason == ImageSaveReason.TOO_LARGE


def test_agent_that_was_killed_begins_the_save_anew(
    docker_agent: AgentProcess, server: ScriptedServer, base: str
) -> None:
    docker_agent.start()
    wanted = docker_agent.workload(image_reference=base)
    server.desire(wanted)
    server.until_observed("env-1", "running")
    docker_agent.kill()
    server.desire(wanted, saves=(request(),))
    docker_agent.start()
    assert server.until_saved("sav-test").image_id is not None


def test_image_that_the_server_does_not_want_any_more_is_removed(
    docker_agent: AgentProcess, server: ScriptedServer, base: str
) -> None:
    docker_agent.start()
    wanted = docker_agent.workload(image_reference=base)
    server.desire(wanted)
    server.until_observed("env-1", "running")
    before = images()
    server.fail("image-saves/sav-test", *[(409, "state_conflict")] * 4)
    server.desire(wanted, saves=(request(),))
    server.until("the agent was told", lambda: "does not want it" in docker_agent.log)
    server.until("nothing is left", lambda: images() == before)


def test_environment_is_saved_by_command_line_and_starts_again_from_its_image(
    live_server: LiveServer, test_image: str, tmp_path: Path
) -> None:
    anonymous = remotegpu.Client(live_server.url, "")
    token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with anonymous, remotegpu.Client(live_server.url, token.secret) as admin:
        admin.images.create(name="lab", reference=test_image)
        host = JoinedHost(live_server, admin, "one", tmp_path / "one", ["--runtime", "docker"])
        try:
            host.start(admin)
            spec = {"gpus": 0, "cpus": 0.1, "memory_bytes": 2**28}
            made = admin.environments.create(name="work", image="lab", **spec)
            admin.environments.wait_ready(made.id, timeout_s=60, progress=False)
            container = docker("ps", "-q", "--filter", f"label=org.remotegpu.host={host.id}").strip()
            (live,) = json.loads(docker("inspect", container))
            own = [entry.partition("=")[2] for entry in live["Config"]["Env"] if "REMOTEGPU_TOKEN" in entry]
            assert own, "the test must look for something"
            (tmp_path / "installed").write_text("a tool")
            docker("cp", str(tmp_path / "installed"), f"{container}:/tmp/installed")
            environ = os.environ | {"REMOTEGPU_URL": live_server.url, "REMOTEGPU_TOKEN": token.secret}
            words = [sys.executable, "-m", "remotegpu", "env", "save", "work", "with-tools"]
            told = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60)
            assert told.returncode == 0, told.stderr + told.stdout
            assert "with-tools is there" in told.stdout
            image = admin.images.get("with-tools").reference
            archive = subprocess.run(["docker", "save", image], capture_output=True, check=True).stdout
            assert not [one for one in ("REMOTEGPU_", *own) if one.encode() in archive]
            admin.environments.delete(made.id)
            again = admin.environments.create(name="again", image="with-tools", **spec)
            ready = admin.environments.wait_ready(again.id, timeout_s=60, progress=False)
            assert get(ready.address, "/exists/tmp/installed") == "yes"
            assert get(ready.address, "/env/REMOTEGPU_TOKEN") not in own
        finally:
            host.stop()
            clean_up(host.id, "docker")
            for saved in admin.images.list(search="with-tools"):
                docker("image", "rm", "-f", saved.reference, check=False)


def _copy_into(container: str, source: subprocess.Popen[bytes]) -> None:
    """A large file, as a user would make one outside the home."""
    assert source.stdout is not None
    with contextlib.closing(source.stdout):
        header = subprocess.run(
            ["python3", "-c", _TAR], stdin=source.stdout, stdout=subprocess.PIPE, check=True
        ).stdout
    subprocess.run(["docker", "cp", "-", f"{container}:/tmp"], input=header, check=True)
    source.wait()


_TAR = """
import sys, tarfile
info = tarfile.TarInfo("large"); info.size = 1500000000
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
    tar.addfile(info, sys.stdin.buffer)
"""


def test_setting_with_a_line_break_is_refused_in_words() -> None:
    with pytest.raises(SaveFailed, match="line break"):
        image_export.changes({"Env": ["A=b\nUSER root"]})


def test_entry_point_comes_before_the_command_which_it_would_take_away() -> None:
    found = image_export.changes({"Cmd": ["b"], "Entrypoint": ["a"], "Env": ["HOME=$x"]})
    assert found == ['ENV HOME="\\$x"', 'ENTRYPOINT ["a"]', 'CMD ["b"]']
