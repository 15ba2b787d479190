"""Every example of the SDK's pages runs as it stands there, in order, against a real server and agent.

A ``text`` block behind a ``python`` block is what that prints; ``...`` in it stands for anything.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest
from page_examples import Example, examples, same

import remotegpu

from .conftest import Platform

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "sdk.md", *sorted(page for page in DOCS.glob("sdk/*.md") if page.name != "reference.md")]
INTERNAL = {"agent", "health"}
"""Resources that only our own programs use."""


def run(example: Example, names: dict[str, object], page: Path) -> None:
    """Also code with ``await`` outside of functions, as notebooks allow it."""
    source = "\n" * example.line + example.code  # so that a traceback names the line of the page
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, names))  # noqa: S307 the examples are ours
    else:
        exec(code, names)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_a_page_run_and_print_what_it_says(
    page: Path,
    platform: Platform,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOTEGPU_URL", platform.url)
    monkeypatch.setenv("REMOTEGPU_TOKEN", platform.token)
    names: dict[str, object] = {"__name__": "__main__"}
    found = list(examples(page))
    assert found
    try:
        for example in found:
            run(example, names, page)
            printed = capsys.readouterr().out
            if example.printed or printed:
                said = f"{page.name}:{example.line}: printed {printed!r}, not {example.printed!r}"
                assert same(example.printed, printed), said
    finally:
        client = names.get("client")
        if isinstance(client, remotegpu.Client):
            client.close()


def test_every_resource_has_examples() -> None:
    resources = {
        name for name, value in vars(remotegpu.Client).items() if type(value).__name__ == "cached_property"
    }
    shown = {
        name
        for page in PAGES
        for example in examples(page)
        for name in re.findall(r"\b(?:client|nobody|waiting)\.(\w+)\.", example.code)
    }
    assert resources - INTERNAL <= shown
