"""Writes ``docs/sdk/reference.md`` from the docstrings; with ``--check`` only fails when it differs."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import remotegpu
from remotegpu import errors

TARGET = Path(__file__).parents[1] / "docs" / "sdk" / "reference.md"

HEADER = """\
# SDK reference

Written by `make docs` from the docstrings of `remotegpu.Client`; change those and run it again.
`remotegpu.AsyncClient` has the same methods to `await`. Fields of the answers stand in `remotegpu/types`,
each with its meaning and its unit.
"""


def generate() -> str:
    """The whole page."""
    return "".join([HEADER, *_resources(), *_errors()])


def _resources() -> Iterator[str]:
    client = remotegpu.Client("http://127.0.0.1:1", "")
    for name, value in sorted(vars(remotegpu.Client).items()):
        if type(value).__name__ != "cached_property":
            continue
        kind = type(getattr(client, name))
        yield f"\n## {name}\n{_text(kind)}\n\n"
        for method, function in vars(kind).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"- `{_call(name, function)}`  \n{_indented(_text(function))}\n"


def _call(resource: str, function: Callable[..., Any]) -> str:
    """A call as one writes it: arguments that may be left out have their default."""
    words = []
    signature = inspect.signature(function)
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        word = f"{parameter.name}: {parameter.annotation}"
        left_out = parameter.default is not parameter.empty
        words.append(f"{word} = {parameter.default!r}" if left_out else word)
    return f"{resource}.{function.__name__}({', '.join(words)}) -> {signature.return_annotation}"


def _errors() -> Iterator[str]:
    yield "\n## Errors\n| class | code | status | meaning |\n| --- | --- | --- | --- |\n"
    for kind in errors.BY_CODE.values():
        hint = f" {kind.default_hint}" if kind.default_hint else ""
        yield f"| `{kind.__name__}` | `{kind.code}` | {kind.status} | {_text(kind)}{hint} |\n"
    for client_error in errors.ClientError.__subclasses__():
        yield f"| `{client_error.__name__}` | | | {_text(client_error)} |\n"


def _text(thing: object) -> str:
    """A docstring as Markdown, in lines as they stand."""
    text = re.sub(r":(?:class|meth):`~?([^`]+)`", r"`\1`", inspect.getdoc(thing) or "")
    text = re.sub(r"^:raises ([\w.]+): ", r"Raises `\1`: ", text, flags=re.MULTILINE)
    text = re.sub(r" :raises ([\w.]+): ", r" Raises `\1`: ", text)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\n|\n(?=Raises )", text)]
    return " ".join(paragraphs).replace("``", "`")


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines()).rstrip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the page is not up to date")
    check = parser.parse_args().check
    text = generate()
    if check and (not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text):
        sys.exit(f"{TARGET} is not up to date, run sdk/generate_reference.py")
    if not check:
        TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
