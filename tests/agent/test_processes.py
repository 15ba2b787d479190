"""Processes of this machine, whatever their programs are called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from joined_host import until

from remotegpu_agent import processes


def test_process_whose_name_is_no_text_is_found_and_disturbs_no_search(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    if sleep is None or Path(os.path.realpath(sleep)).name != "sleep":
        pytest.skip("sleep is not a program of its own here")
    program = os.path.join(os.fsencode(tmp_path), b"\xff")
    shutil.copy(sleep, program)
    marker = "host-of-names/att-1/"
    child = subprocess.Popen([program, "60"], env={processes.MARKER: marker})
    try:
        name = Path(f"/proc/{child.pid}/comm")
        until("it has its own name", lambda: name.read_bytes() == b"\xff\n")
        assert processes.start_ticks(child.pid) is not None
        assert processes.marked(marker) == [child.pid]
        assert processes.marked("host-of-names/att-2/") == []
    finally:
        child.kill()
        child.wait()
