# ruff: noqa: INP001, T201 - a program to run, not a package; it talks to a terminal
"""Make `debian:bookworm-slim` from the distribution's packages, for sites where no registry answers.

Needs debootstrap and root; installs nothing on this machine. REMOTEGPU_DEBIAN_MIRROR names another mirror.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

BASE = "debian:bookworm-slim"
SUITE = "bookworm"

SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
"""What the official slim image leaves out of every package, now and later."""

POLICY = "#!/bin/sh\nexit 101\n"
"""Packages start no services inside an image."""

APT = 'Acquire::Languages "none";\nDPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'


class CannotMakeBase(Exception):
    """Something that this machine lacks; the message says what to do."""


def make_base(tag: str = BASE) -> None:
    """Bootstrap Debian into a scratch folder and import it as one image.

    Raises:
        CannotMakeBase: debootstrap is missing, this is not root, or a step failed.
    """
    if shutil.which("debootstrap") is None:
        raise CannotMakeBase(
            f"{tag} is not here, no registry answers, and debootstrap is not installed. "
            "Install debootstrap, or load the image from elsewhere with `docker load`."
        )
    if os.geteuid() != 0:
        raise CannotMakeBase(
            f"{tag} is not here and no registry answers; making it with debootstrap needs root."
        )
    with tempfile.TemporaryDirectory(prefix="remotegpu-base-", dir=_scratch()) as scratch:
        root = Path(scratch) / "root"
        _bootstrap(root)
        _slim(root)
        _import(root, tag)


def _scratch() -> str | None:
    # /tmp may be mounted nodev or noexec, where debootstrap cannot work; /var/tmp seldom is.
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else None  # noqa: S108


def _bootstrap(root: Path) -> None:
    mirror = os.environ.get("REMOTEGPU_DEBIAN_MIRROR")
    command = ["debootstrap", "--variant=minbase", SUITE, str(root), *([mirror] if mirror else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise CannotMakeBase("debootstrap failed:\n" + "\n".join(done.stdout.splitlines()[-15:]))


def _slim(root: Path) -> None:
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(SLIM)
    (root / "etc/apt/apt.conf.d/slim").write_text(APT)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text(POLICY)
    policy.chmod(0o755)
    _add_security(root / "etc/apt/sources.list")
    for folder in (
        "usr/share/info",
        "usr/share/locale",
        "usr/share/man",
        "var/lib/apt/lists",
        "var/cache/apt",
        "var/log",
    ):
        for entry in (root / folder).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in (root / "usr/share/doc").rglob("*"):
        if not entry.is_dir() and entry.name != "copyright":
            entry.unlink()


def _add_security(sources: Path) -> None:
    """Security updates from the mirror beside the one that was used, where it has them."""
    mirror = sources.read_text().split()[1].rstrip("/")
    release = f"{mirror}-security/dists/{SUITE}-security/Release"
    if not mirror.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(release, timeout=5).close()  # noqa: S310
    except OSError:
        print(f"  no security updates beside {mirror}: add them to the image yourself", file=sys.stderr)
        return
    with sources.open("a") as file:
        file.write(f"deb {mirror}-security {SUITE}-security main\n")


def _import(root: Path, tag: str) -> None:
    tar = subprocess.Popen(
        ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-c", "."], stdout=subprocess.PIPE
    )
    try:
        done = subprocess.run(
            ["docker", "import", "--change", 'CMD ["bash"]', "-", tag],
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        if tar.stdout is not None:
            tar.stdout.close()
        packed = tar.wait()
    if done.returncode != 0 or packed != 0:
        raise CannotMakeBase(f"docker import failed: {done.stderr.strip() or f'tar ended with {packed}'}")


if __name__ == "__main__":
    try:
        make_base()
    except CannotMakeBase as error:
        sys.exit(str(error))
