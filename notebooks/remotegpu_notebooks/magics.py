"""The line magic ``%gpu``: GPUs, quota and capacity as text in a terminal and as a table in a notebook."""

from __future__ import annotations

from contextlib import closing
from html import escape
from typing import TYPE_CHECKING

from remotegpu import errors
from remotegpu_notebooks import rendering
from remotegpu_notebooks.formatting import View, capacity_rows, utc_now, view
from remotegpu_notebooks.source import TIMEOUT_S, ServerSource, sentence

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

USAGE = """\
%gpu           this environment's GPUs and your quota (also: %gpu status)
%gpu quota     what you may hold, and what you hold
%gpu list      GPUs of this site: how many are free now"""
CAPACITY_HEAD = ["Model", "Memory", "Free", "On one host"]


class Answer:
    """Text in two forms; the frontend picks."""

    def __init__(self, text: str, html: str) -> None:
        self._text = text
        self._html = html

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self._html


def register(shell: InteractiveShell) -> None:
    """Add ``%gpu`` to a shell."""
    shell.register_magic_function(gpu, magic_kind="line", magic_name="gpu")


def gpu(line: str) -> Answer:
    """This environment's GPUs, your quota, and what is free.

    %gpu           this environment's GPUs and your quota (also: %gpu status)
    %gpu quota     what you may hold, and what you hold
    %gpu list      GPUs of this site: how many are free now
    """
    commands = {"": _status, "status": _status, "quota": _quota, "list": _capacity}
    command = commands.get(line.strip().lower())
    return _plain(USAGE) if command is None else command()


def _status() -> Answer:
    shown = _look()
    return Answer(rendering.status_text(shown), rendering.status_html(shown))


def _quota() -> Answer:
    shown = _look()
    if not shown["quota"]:
        return _plain(shown["notice"] or "No limits are set for you.")
    return Answer("\n".join(rendering.quota_lines(shown)), rendering.quota_html(shown))


def _look() -> View:
    with closing(ServerSource()) as source:
        return view(source.read(), now=utc_now())


def _capacity() -> Answer:
    from remotegpu import Client  # here: it brings httpx, and `%load_ext` stays quick

    try:
        with Client(timeout_s=TIMEOUT_S, max_retries=0) as client:
            capacity = client.capacity.get()
    except errors.RemoteGPUError as error:
        return _plain(sentence(error))
    rows = capacity_rows(capacity)
    if not rows:
        return _plain("No GPUs are known here yet.")
    return Answer(rendering.table_text(CAPACITY_HEAD, rows), rendering.table_html(CAPACITY_HEAD, rows))


def _plain(text: str) -> Answer:
    return Answer(text, f"<pre>{escape(text)}</pre>")
