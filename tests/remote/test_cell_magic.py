"""``%%remotegpu`` in IPython's own shell, with the token of a notebook, on a real agent."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import remotegpu
from remotegpu._remote import functions
from remotegpu_notebooks.elsewhere import names_of

from .conftest import server_program, until


@pytest.fixture(scope="module")
def notebook(site: remotegpu.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An environment that runs; its token and id are those of this process."""
    folder = tmp_path_factory.mktemp("notebook")
    (program,) = server_program(folder)[1:]
    known = folder / "known"
    code = (
        "import os, runpy; e = os.environ;"
        f"open({str(known)!r}, 'w').write(e['REMOTEGPU_TOKEN'] + ' ' + e['REMOTEGPU_ENVIRONMENT_ID']);"
        f"runpy.run_path({program!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    site.images.create(name="notebook", reference="process/notebook", runtime="process", command=command)
    made = site.environments.create(name="work", image="notebook")
    site.environments.wait_ready(made.id, timeout_s=60, progress=False)
    token, environment_id = until("it said its token", lambda: known.exists() and known.read_text()).split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMOTEGPU_TOKEN", token)
        patch.setenv("REMOTEGPU_ENVIRONMENT_ID", environment_id)
        yield
    functions._client.cache_clear()
    site.environments.delete(made.id)
    site.environments.wait_stopped(made.id, timeout_s=60)


@pytest.fixture
def shell(notebook: None) -> Iterator[InteractiveShell]:
    shell = InteractiveShell()
    shell.history_manager.enabled = False
    shell.run_line_magic("load_ext", "remotegpu_notebooks")
    yield shell
    shell.run_line_magic("unload_ext", "remotegpu_notebooks")
    assert "remotegpu" not in shell.magics_manager.magics["cell"]
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()


def cell(shell: InteractiveShell, line: str, body: str) -> None:
    shell.run_cell_magic("remotegpu", line, body)


def task_ids(printed: str) -> list[str]:
    return [word.rstrip(".") for word in printed.split() if word.startswith("tsk-")]


def test_cell_runs_as_a_task_and_brings_its_names(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.push({"data": [1, 2, 3], "total": "old"})
    cell(
        shell,
        "--gpus 1",
        "import os\ntotal = sum(data)\ndef twice(): return 2 * total\n"
        "print('task', os.environ['REMOTEGPU_TASK_ID'])\ntwice()\n",
    )
    printed = capsys.readouterr().out
    assert shell.user_ns["total"] == 6
    assert shell.user_ns["twice"]() == 12
    announced, again, own = task_ids(printed)
    assert announced == again == own
    assert printed.index("%remotegpu attach") < printed.index("task tsk-")
    assert printed.endswith("12\n")


def test_cell_is_found_again_by_its_task_in_another_notebook(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(shell, "", "answer = 42\nprint('said')")
    task_id = task_ids(capsys.readouterr().out)[0]
    del shell.user_ns["answer"]
    shell.run_line_magic("remotegpu", f"attach {task_id}")
    assert capsys.readouterr().out == "said\n"
    assert shell.user_ns["answer"] == 42
    shell.run_line_magic("remotegpu", f"stop {task_id}")
    assert "had ended" in capsys.readouterr().out


def test_exception_of_a_cell_is_raised_here(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        cell(shell, "", "zero = 0\n1 / zero")
    assert "1 / zero" in str(caught.value.__cause__)
    assert "1 / zero" in capsys.readouterr().out


def test_interrupted_cell_goes_on_and_says_how_to_come_back(
    shell: InteractiveShell,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def interrupted(future: remotegpu.RemoteFuture[object]) -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    go = str(tmp_path / "go")
    shell.push({"go": go})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(remotegpu.RemoteFuture, "output", interrupted)
        cell(shell, "", "import os, time\nwhile not os.path.exists(go): time.sleep(0.02)\ndone = True")
    task_id = task_ids(capsys.readouterr().out)[0]
    Path(go).touch()
    shell.run_line_magic("remotegpu", f"attach {task_id}")
    assert shell.user_ns["done"] is True


@pytest.mark.parametrize(
    ("line", "body", "said"),
    [
        ("", "lock.acquire()", "lock .* cannot travel"),
        ("", "%pip install x", "Line 1: magics"),
        ("", "a = (", "never closed"),
        ("--gpus many", "a = 1", "invalid int value"),
        ("--image nothing", "a = 1", "nothing"),
        ("-h", "a = 1", "run this cell"),
    ],
)
def test_cell_that_cannot_run_is_refused_in_a_sentence(
    shell: InteractiveShell, site: remotegpu.Client, line: str, body: str, said: str
) -> None:
    import threading

    before = len(list(site.tasks.list()))
    shell.push({"lock": threading.Lock()})
    with pytest.raises(UsageError, match=said):
        cell(shell, line, body)
    assert len(list(site.tasks.list())) == before


@pytest.mark.parametrize(
    ("body", "reads", "assigns"),
    [
        ("b = a + 1", {"a"}, {"b"}),
        ("a = 1\nb = a", set(), {"a", "b"}),
        ("a = a + 1", {"a"}, {"a"}),
        ("a += 1", {"a"}, {"a"}),
        ("a = 1\na += b", {"b"}, {"a"}),
        ("import numpy as np\nb = np.ones(n)", {"n"}, {"b"}),
        ("def f(x):\n  y = x + k\n  return y", {"k"}, {"f"}),
        ("for i in items: t = i", {"items"}, {"i", "t"}),
        ("b = [x for x in a]", {"a"}, {"b"}),
        ("def f():\n  global g\n  g = 1", set(), {"f", "g"}),
        ("a.append(1)", {"a"}, set()),
        ("if c:\n  a = 1\nprint(a)", {"c", "a"}, {"a"}),
    ],
)
def test_names_that_a_cell_reads_and_assigns(body: str, reads: set[str], assigns: set[str]) -> None:
    found, made = names_of(body)
    assert found - {"print"} == reads
    assert made == assigns
