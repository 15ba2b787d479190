"""Where the owner's files lie on this host: by volume id only, so that no name can lead elsewhere."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from remotegpu.types.agent import HomeVolume
from remotegpu.types.environments import Reason
from remotegpu_agent.runtime import StartRefused
from remotegpu_agent.settings import Settings

_VOLUME_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")


def prepare_home(settings: Settings, volume: HomeVolume, *, owner: int | None) -> Path:
    """The home's directory, made with mode 0700 where it is new. ``owner``: uid and gid to give it to."""
    root = settings.shared_home_dir if volume.shared else settings.home_root
    if root is None:
        raise StartRefused(
            Reason.START_FAILED,
            "This environment's home lies under a shared root, and this host has none. "
            "Start the agent with --shared-home NAME=DIR.",
        )
    if not _VOLUME_ID.match(volume.volume_id):
        raise StartRefused(Reason.START_FAILED, "The volume id is not one: nothing was mounted.")
    home = root / volume.volume_id
    try:
        root.mkdir(parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink():
            raise StartRefused(Reason.START_FAILED, f"{home} is a link; homes must be directories.")
        if owner is not None and os.geteuid() == 0 and home.stat().st_uid != owner:
            os.chown(home, owner, owner)
    except OSError as error:
        raise StartRefused(Reason.START_FAILED, f"The home {home} cannot be prepared: {error}") from error
    return home


def place_of(settings: Settings, volume: HomeVolume) -> Path | str:
    """Where a home lies or would lie, or why this host cannot say."""
    root = settings.shared_home_dir if volume.shared else settings.home_root
    if root is None:
        return "This host has no shared root."
    if not _VOLUME_ID.match(volume.volume_id):
        return "The volume id is not one."
    if not root.is_dir():
        return f"{root} is not there."
    if volume.shared and next(root.iterdir(), None) is None:
        return f"The shared root {root} is empty: is it mounted?"
    return root / volume.volume_id


def remove_home(settings: Settings, volume: HomeVolume) -> str | None:
    """Remove a home; ``None`` when nothing of it is left."""
    home = place_of(settings, volume)
    if isinstance(home, str):
        return f"{home} Nothing was removed."
    try:
        if home.is_symlink():
            return f"{home} is a link; homes are directories."
        if home.exists():
            shutil.rmtree(home)
    except OSError as error:
        return f"The home cannot be removed: {error}"
    return None
