"""Pin all dependencies again: what `make lock` runs. ARGS go to uv, such as `ARGS="-P jupyterhub"`."""

# ruff: noqa: INP001  a script
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = Path(sys.executable).with_name("uv")
COMMON = [
    "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header",
    "--no-emit-index-url", "--no-emit-find-links",
]  # fmt: skip


def main():
    chosen = sys.argv[1:] or ["--upgrade"]
    _compile("dev.txt", ["--all-extras", "--group", "dev", "pyproject.toml"], chosen)
    # The peers of the benchmarks share the environment, so they fit what is pinned already.
    _compile("bench.txt", ["--group", "pyproject.toml:bench", "--constraint", "requirements/dev.txt"], chosen)


def _compile(name, what, chosen):
    target = ["--output-file", f"requirements/{name}"]
    command = [UV, "pip", "compile", *COMMON, *what, *chosen, *target]
    subprocess.run(command, check=True, cwd=HERE.parent)


if __name__ == "__main__":
    main()
