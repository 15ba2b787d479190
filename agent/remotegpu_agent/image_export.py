"""A container's file system as an image of its own, with the configuration of the image it was made from.

Not ``docker commit``: that takes the container's environment over, with the tokens in it. Here the engine's
export flows into its import, piece by piece; of the container nothing but files is used, and what is mounted
into it (the home, SSH keys) is in no export.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from remotegpu.types.image_saves import ImageSaveReason
from remotegpu_agent.docker_client import Engine, EngineError
from remotegpu_agent.runtime import BytesRead, RuntimeUnavailable, SaveFailed

MESSAGE = "Saved from an environment by RemoteGPU"
TAR_END = bytes(1024)
"""Two empty blocks. A tar that was cut off between two files looks whole to the engine."""


def changes(config: dict[str, Any]) -> list[str]:
    """The configuration of an image as Dockerfile instructions for an import.

    Raises :class:`SaveFailed` for what no instruction can say.
    """
    found = [f"ENV {_pair(entry)}" for entry in config.get("Env") or []]
    labels = config.get("Labels") or {}
    found += [f"LABEL {_quoted(name)}={_quoted(value)}" for name, value in labels.items()]
    found += [f"EXPOSE {port}" for port in config.get("ExposedPorts") or {}]
    if config.get("WorkingDir"):
        found.append(f"WORKDIR {_quoted(config['WorkingDir'])}")
    if config.get("User"):
        found.append(f"USER {_quoted(config['User'])}")
    # In this order: an entry point takes away a command that was given before it.
    if config.get("Entrypoint"):
        found.append(f"ENTRYPOINT {json.dumps(config['Entrypoint'])}")
    if config.get("Cmd"):
        found.append(f"CMD {json.dumps(config['Cmd'])}")
    return found


def _pair(entry: str) -> str:
    name, _, value = entry.partition("=")
    return f"{name}={_quoted(value)}"


def _quoted(text: str) -> str:
    """A word in double quotes in which the engine's parser expands nothing."""
    if "\n" in text or "\r" in text:
        raise SaveFailed(
            ImageSaveReason.HOST_FAILED,
            "The base image has a setting with a line break, which no import takes.",
        )
    for special in ("\\", '"', "$"):
        text = text.replace(special, f"\\{special}")
    return f'"{text}"'


async def save(engine: Engine, container_id: str, reference: str, max_bytes: int, progress: BytesRead) -> str:
    """The id of the new image. Nothing is left of one that failed: the engine keeps whole ones only."""
    stream = _Stream(max_bytes, progress)
    try:
        container = await engine.inspect_container(container_id)
        base = await engine.image(container["Image"])
        if base is None:
            raise SaveFailed(
                ImageSaveReason.HOST_FAILED, "The image it was made from is not on the host any more."
            )
        config = changes(base.get("Config") or {})
        async with engine.export_container(container_id) as pieces:
            return await engine.import_image(
                stream.checked(pieces), reference=reference, changes=config, message=MESSAGE
            )
    except (EngineError, RuntimeUnavailable) as error:
        if stream.failure is not None:  # which ended the import, and is all that counts
            raise stream.failure from error
        if isinstance(error, EngineError):
            raise SaveFailed(ImageSaveReason.HOST_FAILED, _words(error.message)) from error
        raise


class _Stream:
    """A file system on its way from the export to the import."""

    def __init__(self, max_bytes: int, progress: BytesRead) -> None:
        self._max_bytes, self._progress = max_bytes, progress
        self.failure: SaveFailed | None = None

    async def checked(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """An exception in here ends the request without its last chunk, so that the engine drops it all."""
        read_bytes, tail = 0, b""
        async for piece in pieces:
            read_bytes += len(piece)
            if read_bytes > self._max_bytes:
                raise self._failed(
                    ImageSaveReason.TOO_LARGE,
                    f"Its file system is larger than {self._max_bytes / 2**30:.1f} GiB,"
                    " the most that may be saved.",
                )
            self._progress(read_bytes)
            tail = (tail + piece)[-len(TAR_END) :]
            yield piece
        if tail != TAR_END:
            raise self._failed(ImageSaveReason.HOST_FAILED, "The container ended while it was being saved.")

    def _failed(self, reason: ImageSaveReason, message: str) -> SaveFailed:
        self.failure = SaveFailed(reason, message)
        return self.failure


def _words(engine_says: str) -> str:
    if any(sign in engine_says.lower() for sign in ("no space left", "disk quota")):
        return f"The disk of this host is full. (Engine: {engine_says[:300]})"
    return f"Docker could not save it: {engine_says[:300]}"
