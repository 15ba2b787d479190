"""``remotegpu.report_progress``: the line that a task's host reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import remotegpu
from remotegpu import _report


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(_report, "_written_at", None)
    monkeypatch.setenv(_report.PROGRESS_FILE, str(tmp_path / "progress"))
    return tmp_path / "progress"


def test_progress_is_one_line_of_part_and_words(file: Path) -> None:
    remotegpu.report_progress(0.4, "epoch 4\nof 10")
    assert file.read_text() == "0.4 epoch 4 of 10\n"
    assert [one.name for one in file.parent.iterdir()] == ["progress"]


def test_progress_in_quick_succession_is_left_out_but_never_the_end(file: Path) -> None:
    for step in range(100):
        remotegpu.report_progress(step / 100)
    assert file.read_text() == "0\n"
    remotegpu.report_progress(1, "done")
    assert file.read_text() == "1 done\n"


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_progress_outside_of_the_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        remotegpu.report_progress(wrong)


def test_progress_that_cannot_be_written_does_not_fail_the_task(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_report.PROGRESS_FILE, str(file / "nowhere"))
    remotegpu.report_progress(0.5)


def test_progress_outside_of_a_task_loads_no_client() -> None:
    code = (
        "import sys, remotegpu; remotegpu.report_progress(0.5); print('httpx' in sys.modules, 'pydantic' in"
        " sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
