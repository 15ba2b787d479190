"""First process of a notebook that runs without an image, as a process of its host.

It does what ``notebooks/images/base/start-notebook`` does in the image: fills an empty home with the
examples, then becomes the hub's single-user server, which asks nobody about news or updates.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
"""Beside the package in a checkout, which is where notebooks run without an image."""
_QUIET = ("--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate")


def fill_home(home: Path, examples: Path = EXAMPLES) -> None:
    """Copy the examples into an empty home. Anything in it belongs to its owner and is never touched.

    A home that cannot be written must not keep the server from starting: it says so itself.
    """
    if not examples.is_dir():
        return
    try:
        if not any(home.iterdir()):
            shutil.copytree(examples, home / "examples", ignore=shutil.ignore_patterns(".*"))
    except OSError as error:
        print(f"the examples could not be copied to {home}: {error}", file=sys.stderr)  # noqa: T201


def main() -> None:
    """Never returns. As root, which only an evaluation runs as, Jupyter wants to be told that it is meant."""
    fill_home(Path.home())
    program = Path(sys.executable).with_name("jupyterhub-singleuser")
    as_root = ["--allow-root"] if os.geteuid() == 0 else []
    os.execv(program, [str(program), *_QUIET, *as_root, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
