# ruff: noqa: INP001, T201 - a program to run, not a package; it talks to a terminal
"""Build `remotegpu/base:latest`, the notebook image. Called by `make image`; needs only Python and Docker.

Prints one line per step with its time. Does nothing when an image of the same inputs is already here; pass
`--force` to build all the same. Where no registry answers, the base image is made by make_base.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import make_base

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = HERE / "base"
REQUIREMENTS = ROOT / "requirements" / "notebook-image.txt"
EXAMPLES = ROOT / "notebooks" / "examples"
NAME = "remotegpu/base"
LABEL = "org.remotegpu.inputs"
PULL_TIMEOUT_S = 120
REACH_TIMEOUT_S = 10
PASSED_ON = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS")
"""Where packages come from, if not from the default: names only, so that docker reads the values itself."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


class BuildFailed(Exception):
    """A step failed; the message is for the person at the terminal."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="build even if nothing changed")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        inputs = _inputs_hash()
        if not arguments.force and _label(f"{NAME}:latest") == inputs:
            print(f"  {NAME}:latest is up to date")
            return 0
        build(inputs)
    except (BuildFailed, make_base.CannotMakeBase) as error:
        print(f"image not built: {error}", file=sys.stderr)
        return 1
    print(f"  {NAME}:latest is ready ({_size()}), {time.monotonic() - started:.1f} s in all")
    return 0


def build(inputs: str) -> None:
    """Base image and build context side by side, then the image."""
    if shutil.which("docker") is None:
        raise BuildFailed("the docker command is not installed")
    with tempfile.TemporaryDirectory(prefix="remotegpu-image-") as scratch, ThreadPoolExecutor() as pool:
        context = Path(scratch)
        base = pool.submit(_step, f"base image {make_base.BASE}", _ensure_base)
        prepared = pool.submit(_step, "wheel and build context", lambda: _prepare(context))
        prepared.result()
        base.result()
        _step("docker build", lambda: _docker_build(context, inputs))


def _step(title: str, work: Callable[[], None]) -> None:
    started = time.monotonic()
    work()
    print(f"  {title:<32} {time.monotonic() - started:6.1f} s", flush=True)


def _inputs() -> Iterator[Path]:
    yield from (ROOT / "pyproject.toml", REQUIREMENTS, Path(__file__), HERE / "make_base.py")
    for folder in (FOLDER, EXAMPLES, ROOT / "sdk" / "remotegpu", ROOT / "notebooks" / "remotegpu_notebooks"):
        yield from sorted(
            path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        )


def _inputs_hash() -> str:
    """Of everything that the image's user can notice; the other packages in our wheel are not used there."""
    digest = hashlib.sha256()
    for path in _inputs():
        if path.suffix in {".ipynb_checkpoints", ".pyc"} or ".ipynb_checkpoints" in path.parts:
            continue
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def _label(image: str) -> str | None:
    done = _run(["docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', image])
    return done.stdout.strip() if done.returncode == 0 else None


def _size() -> str:
    done = _run(["docker", "image", "inspect", "--format", "{{.Size}}", f"{NAME}:latest"])
    return f"{int(done.stdout) / 1e6:.0f} MB"


def _ensure_base() -> None:
    if _run(["docker", "image", "inspect", make_base.BASE]).returncode == 0:
        return
    try:
        pulled = _run(["docker", "pull", "--quiet", make_base.BASE], timeout=PULL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print(f"  no answer from the registry within {PULL_TIMEOUT_S} s: making {make_base.BASE} here")
    else:
        if pulled.returncode == 0:
            return
        print(f"  no registry ({pulled.stderr.strip().splitlines()[-1][:90]}): making {make_base.BASE} here")
    make_base.make_base()


def _prepare(context: Path) -> None:
    for name in ("Dockerfile", "start-notebook", "start-sshd", "overrides.json"):
        shutil.copy2(FOLDER / name, context / name)
    shutil.copy2(REQUIREMENTS, context / "notebook-image.txt")
    shutil.copytree(EXAMPLES, context / "examples", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    shutil.copy2(_uv(), context / "uv")
    _copy_ca_bundle(context / "ca.pem")
    (context / "wheels").mkdir()
    built = _run(
        [
            str(context / "uv"),
            "build",
            "--wheel",
            "--quiet",
            "--no-build-isolation",
            "--python",
            sys.executable,
            "--out-dir",
            str(context / "wheels"),
            str(ROOT),
        ]
    )
    if built.returncode != 0:
        raise BuildFailed(f"the wheel could not be built:\n{built.stderr[-2000:]}")


def _uv() -> Path:
    """The uv of this Python's environment, which the image's builder stage uses too."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise BuildFailed("uv is not installed; run `make setup` first")
    return Path(found)


def _copy_ca_bundle(target: Path) -> None:
    """Where this machine trusts more than the usual authorities, the builder stage must too."""
    bundle = next(
        (os.environ[name] for name in CA_VARIABLES if Path(os.environ.get(name) or "-").is_file()), None
    )
    if bundle is None:
        target.touch()
    else:
        shutil.copyfile(bundle, target)


def _docker_build(context: Path, inputs: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    command = [
        "docker",
        "build",
        "--tag",
        f"{NAME}:latest",
        "--tag",
        f"{NAME}:{version}",
        "--label",
        f"{LABEL}={inputs}",
    ]
    for name in (*PASSED_ON, *PROXIES):
        if os.environ.get(name):
            command += ["--build-arg", name]
    done = subprocess.run(
        [*command, str(context)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildFailed("docker build failed:\n" + "\n".join(done.stdout.splitlines()[-25:]))


def _run(command: list[str], *, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


if __name__ == "__main__":
    sys.exit(main())
