"""The notebook image as an environment runs it: uid 1000, an empty home mounted, no trace of the build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMAGE = "remotegpu/base:latest"
BUILD = Path(__file__).parents[2] / "notebooks" / "images" / "build.py"


def _engine_answers() -> bool:
    try:
        done = subprocess.run(["docker", "version"], capture_output=True, check=False, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not _engine_answers(), reason="no Docker engine answers"),
]


@pytest.fixture(scope="module", autouse=True)
def image() -> str:
    """Built if it is missing or its inputs changed."""
    done = subprocess.run([sys.executable, str(BUILD)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return IMAGE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, 1000, 1000)
    else:
        home.chmod(0o777)
    return home


def inside(home: Path, *command: str, options: tuple[str, ...] = ("--init",)) -> str:
    """Run a command as the agent would, and return what it printed."""
    done = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges",
         *options, "--volume", f"{home}:/home/jovyan", IMAGE, *command],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_image_runs_as_jovyan_without_a_way_to_root(home: Path) -> None:
    assert inside(home, "id", "-u", "-n").strip() == "jovyan"
    script = "id -u; command -v sudo su 2>/dev/null; test -w /opt/remotegpu || echo read-only"
    out = inside(home, "sh", "-c", script).split()
    assert out[0] == "1000"
    assert "read-only" in out


def test_image_has_the_single_user_server_and_our_packages(home: Path) -> None:
    assert inside(home, "jupyterhub-singleuser", "--version").strip().startswith("6.")
    inside(home, "python", "-c", "import remotegpu, remotegpu_notebooks.widgets, jupyterlab, anywidget")
    assert "remotegpu" in inside(home, "remotegpu", "--help").lower()


def test_image_has_compiled_code_that_python_takes(home: Path) -> None:
    script = (
        "import importlib.util, importlib._bootstrap_external as b, pathlib, sys\n"
        "for name in ('remotegpu', 'jupyterlab', 'jupyterhub.singleuser', 'tornado.web'):\n"
        "    source = importlib.util.find_spec(name).origin\n"
        "    data = pathlib.Path(importlib.util.cache_from_source(source)).read_bytes()\n"
        "    stat = pathlib.Path(source).stat()\n"
        "    b._validate_timestamp_pyc(data, int(stat.st_mtime), stat.st_size, name, {})\n"
        "print('dont_write', sys.flags.dont_write_bytecode)\n"
    )
    assert inside(home, "python", "-c", script).strip() == "dont_write 0"


def test_image_keeps_no_trace_of_the_build_machine(home: Path) -> None:
    history = subprocess.run(
        ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "ca.pem" not in history
    assert "UV_" not in history
    assert "proxy" not in history.lower()
    assert (
        inside(home, "sh", "-c", "ls -d /build 2>/dev/null; find / -xdev -name ca.pem 2>/dev/null; true")
        == ""
    )
    assert "SSL_CERT" not in inside(home, "env")


def test_first_start_in_an_empty_home_brings_the_examples(home: Path) -> None:
    inside(home, "true")
    assert (home / "examples" / "01-my-gpus.ipynb").is_file()
    assert (home / "examples").stat().st_uid == 1000


def test_start_in_a_home_with_files_touches_nothing(home: Path) -> None:
    inside(home, "sh", "-c", "rm -r examples && echo mine > note.txt")
    inside(home, "true")
    assert [entry.name for entry in home.iterdir()] == ["note.txt"]


def test_home_that_cannot_be_written_does_not_keep_the_server_from_starting(home: Path) -> None:
    if os.geteuid() == 0:
        os.chown(home, 0, 0)
    home.chmod(0o555)
    assert inside(home, "echo", "started").strip() == "started"


def test_container_has_one_init_with_and_without_the_engines(home: Path) -> None:
    script = "cat /proc/[0-9]*/comm | sort | uniq -c"
    assert "tini" not in inside(home, "sh", "-c", script)
    assert "tini" in inside(home, "sh", "-c", script, options=())


def test_user_installs_land_in_the_home(home: Path) -> None:
    out = inside(
        home, "python", "-c", "import site; print(site.ENABLE_USER_SITE, site.getusersitepackages())"
    )
    assert out.split() == ["True", "/home/jovyan/.local/lib/python3.11/site-packages"]
