"""Every example runs from top to bottom in a real kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from notebooks.standin import StandIn

EXAMPLES = sorted((Path(__file__).parents[2] / "notebooks" / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_committed_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
async def test_example_runs_from_top_to_bottom(path: Path, server: StandIn, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    await client.async_execute()
    text = str(notebook.cells)
    assert "A100-80GB" in text
    assert "application/vnd.jupyter.widget-view+json" in text
    assert (tmp_path / "hello-from-my-gpu.txt").read_text().startswith("Written 20")
