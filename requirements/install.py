"""Put pinned requirements into a virtual environment: what `make setup` runs, with any Python 3.

uv does the work, because it takes seconds where pip takes minutes; it is told what pip's own configuration
says (indexes, certificates), and pip steps in where uv fails.
"""

# ruff: noqa: INP001, S606  a script, run by Pythons that cannot import the project
import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MINIMUM = (3, 11)
HERE = Path(__file__).resolve().parent
PINNED_UV = HERE / "dev.txt"


def main():
    _require_new_python()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", required=True, type=Path)
    parser.add_argument("--project", action="store_true", help="install the project too, editable")
    parser.add_argument("requirements", type=Path)
    arguments = parser.parse_args()
    python = arguments.venv / "bin" / "python"
    if not _runs(python):
        _say(f"making {arguments.venv} with Python {sys.version.split()[0]}")
        _make_venv(arguments.venv, python)
    uv = arguments.venv / "bin" / "uv"
    if not _runs(uv):
        _install_uv(python)
    _say(f"installing {arguments.requirements} (the first time needs the network)")
    _install(uv, python, ["--require-hashes", "--compile-bytecode", "-r", str(arguments.requirements)])
    if arguments.project:
        _install(uv, python, ["--no-deps", "--no-build-isolation", "--editable", str(HERE.parent)])
    _say("done")


def _require_new_python():
    if sys.version_info >= MINIMUM:
        return
    for minor in range(20, MINIMUM[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other:
            os.execv(other, [other, *sys.argv])
    raise SystemExit(
        f"RemoteGPU needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer, and {sys.executable} is "
        f"{sys.version.split()[0]}. Name another one: make setup PYTHON=/path/to/python3"
    )


def _make_venv(venv, python):
    """The standard library's venv; where the distribution split pip off, whatever else can do it."""
    uv = shutil.which("uv")
    attempts = [[sys.executable, "-m", module, str(venv)] for module in ("venv", "virtualenv")]
    if uv:
        attempts.append([uv, "venv", "-q", "--seed", "--python", sys.executable, str(venv)])
    for command in attempts:
        shutil.rmtree(venv, ignore_errors=True)
        if subprocess.run(command, capture_output=True).returncode == 0 and _runs(python):
            return
    shutil.rmtree(venv, ignore_errors=True)
    raise SystemExit(
        f"{sys.executable} cannot make a virtual environment: it comes without ensurepip. "
        "Install it (Debian, Ubuntu: apt install python3-venv), or name another Python: make setup PYTHON=..."
    )


def _install_uv(python):
    """The pinned uv, by pip."""
    block = re.search(r"^uv==.*?(?=^\S|\Z)", PINNED_UV.read_text(), re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit(f"{PINNED_UV} does not pin uv")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write(block.group(0))
        pinned.flush()
        code = _pip(python, ["--require-hashes", "-r", pinned.name])
    if code != 0:
        raise SystemExit("pip could not install uv; its message stands above. Is a package index reachable?")


def _install(uv, python, arguments):
    done = subprocess.run(
        [str(uv), "pip", "install", "--quiet", "--python", str(python), *arguments],
        env={**_from_pip(python), **os.environ},
    )
    if done.returncode == 0:
        return
    _say("uv did not succeed; trying pip")
    if _pip(python, [word for word in arguments if word != "--compile-bytecode"]) != 0:
        raise SystemExit("the requirements could not be installed; the messages stand above")


def _pip(python, arguments):
    return subprocess.run([*_pip_command(python), "install", "--quiet", *arguments]).returncode


def _pip_command(python):
    """The environment's own pip, or the bootstrapping Python's, pointed at the environment."""
    if subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [str(python), "-m", "pip"]
    return [sys.executable, "-m", "pip", "--python", str(python)]


def _from_pip(python):
    """pip's configuration in uv's words. What uv was told itself, in the environment, goes first."""
    listed = subprocess.run([*_pip_command(python), "config", "list"], capture_output=True, text=True)
    settings = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        if value:
            settings[name.rpartition(".")[2]] = ast.literal_eval(value)
    words = {
        "index-url": ("UV_DEFAULT_INDEX", " "),
        "extra-index-url": ("UV_INDEX", " "),
        "find-links": ("UV_FIND_LINKS", ","),
        "trusted-host": ("UV_INSECURE_HOST", " "),
        "cert": ("SSL_CERT_FILE", " "),
    }
    found = {
        variable: separator.join(str(settings[name]).split())
        for name, (variable, separator) in words.items()
        if name in settings
    }
    if "UV_INDEX" in found:
        # pip takes the best version of all indexes; every file is checked by its hash.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


def _runs(program):
    try:
        return subprocess.run([str(program), "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _say(words):
    sys.stdout.write(f"  setup     {words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
