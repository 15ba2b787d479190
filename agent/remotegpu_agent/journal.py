"""What the agent must remember over its own death: which starts it completed.

Containers' labels are the truth about what exists. The journal only tells "never started here" from
"started, and vanished since", and names the workloads while the engine does not answer.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from remotegpu_agent.settings import write_private

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One completed start."""

    generation: int
    gpu_uuids: tuple[str, ...]
    ready: bool
    """Its server has answered."""


class Journal:
    """A small file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}
        try:
            for workload_id, entry in json.loads(path.read_text()).items():
                self._entries[workload_id] = Entry(**{**entry, "gpu_uuids": tuple(entry["gpu_uuids"])})
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # Losing it costs one thing: a container that vanished meanwhile is started again, not reported.
            log.warning("journal %s is damaged and starts empty: %s", path, error)
            self._entries.clear()

    def get(self, workload_id: str, generation: int) -> Entry | None:
        entry = self._entries.get(workload_id)
        return entry if entry is not None and entry.generation == generation else None

    def entries(self) -> dict[str, Entry]:
        return dict(self._entries)

    def put(self, workload_id: str, entry: Entry) -> None:
        if self._entries.get(workload_id) != entry:
            self._entries[workload_id] = entry
            self._write()

    def forget(self, workload_id: str) -> None:
        if self._entries.pop(workload_id, None) is not None:
            self._write()

    def _write(self) -> None:
        write_private(self._path, json.dumps({key: asdict(entry) for key, entry in self._entries.items()}))
