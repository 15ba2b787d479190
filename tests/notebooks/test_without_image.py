"""The first process of a notebook without an image: what it puts into a home."""

from __future__ import annotations

from pathlib import Path

import pytest

from remotegpu_notebooks import without_image


def test_empty_home_gets_the_examples(tmp_path: Path) -> None:
    without_image.fill_home(tmp_path)
    assert (tmp_path / "examples" / "01-my-gpus.ipynb").is_file()


def test_home_with_anything_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    without_image.fill_home(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_home_that_cannot_be_filled_is_said_and_keeps_nothing_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_image.fill_home(tmp_path / "missing")
    assert "could not be copied" in capsys.readouterr().err
