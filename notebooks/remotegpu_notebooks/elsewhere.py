"""The magic ``%%remotegpu``: a cell runs as a task on another GPU, and its names come back."""

from __future__ import annotations

import argparse
import ast
import shlex
import symtable
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from remotegpu import errors
from remotegpu_notebooks.source import sentence

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from remotegpu import RemoteFuture

USAGE = """\
%%remotegpu [--gpus N] [--image IMAGE] …   run this cell as a task (-h lists the options)
%remotegpu attach TASK_ID                  its output again, and its names
%remotegpu stop TASK_ID                    end it"""


class _Parser(argparse.ArgumentParser):
    """One that does not end the kernel."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}\n{self.format_usage()}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise ValueError(message or "")


def register(shell: InteractiveShell) -> None:
    """Add ``%%remotegpu`` and ``%remotegpu`` to a shell."""

    def remotegpu(line: str, cell: str | None = None) -> None:
        try:
            if cell is None:
                _command(shell, line)
            else:
                _run(shell, line, cell)
        except errors.RemoteGPUError as error:
            if isinstance(error, errors.RemoteFailed):
                raise
            _refuse(sentence(error))

    remotegpu.__doc__ = USAGE
    shell.register_magic_function(remotegpu, magic_kind="line_cell", magic_name="remotegpu")


def _refuse(text: str) -> NoReturn:
    """An error without a traceback: there is nothing to see in ours."""
    from IPython.core.error import UsageError

    raise UsageError(text)


def _options() -> _Parser:
    parser = _Parser(prog="%%remotegpu", description="Run this cell as a task.")
    parser.add_argument("--image", help="left out: the image of this environment")
    parser.add_argument("--gpus", type=int, metavar="N")
    parser.add_argument("--gpu-model", action="append", dest="gpu_models", metavar="MODEL")
    parser.add_argument("--cpus", type=float, metavar="N")
    parser.add_argument("--memory-gib", type=float, metavar="N")
    parser.add_argument("--timeout", type=float, dest="timeout_s", metavar="S", help="seconds")
    parser.add_argument("--workspace", metavar="ID")
    parser.add_argument("--python", default="python3", help="the program on the other side")
    return parser


def _run(shell: InteractiveShell, line: str, cell: str) -> None:
    try:
        options = vars(_options().parse_args(shlex.split(line)))
        reads, assigns = names_of(cell)
    except (ValueError, SyntaxError) as error:
        _refuse(str(error) or USAGE)
    variables = {name: shell.user_ns[name] for name in sorted(reads) if name in shell.user_ns}
    from remotegpu._remote import (
        functions,
        packing,
    )  # here: httpx and cloudpickle, and `%load_ext` stays quick
    from remotegpu._remote.futures import RemoteFuture

    with packing.pack_cell(
        cell, variables, sorted(assigns), python=options.pop("python"), client=functions.default_client
    ) as packed:
        client = functions.default_client()
        image = options.pop("image") or functions.own_image(client)
        if (memory_gib := options.pop("memory_gib")) is not None:
            options["memory_bytes"] = int(memory_gib * 2**30)
        sent = packed.sent_by(client)
        (task,) = client.tasks.submit(
            image=image, script=packed.script, input_sha256=sent, name="cell", **options
        ).tasks
    print(f"Task {task.id} is {task.status}. {task.message}".rstrip())
    print(f"It goes on when this notebook is closed: %remotegpu attach {task.id}", flush=True)
    _follow(shell, RemoteFuture(client, task.id, packing.nonce_of(packed.script)))


def _command(shell: InteractiveShell, line: str) -> None:
    words = line.split()
    if len(words) != 2 or words[0] not in {"attach", "stop"}:
        print(USAGE)
        return
    from remotegpu import attach

    future = attach(words[1])
    if words[0] == "attach":
        _follow(shell, future)
    else:
        print(f"Task {words[1]} {'is stopping' if future.cancel() else 'had ended'}.")


def _follow(shell: InteractiveShell, future: RemoteFuture[Any]) -> None:
    """Its output, then its names into the notebook."""
    try:
        for piece in future.output():
            print(piece, end="", flush=True)
        found = future.result()
    except KeyboardInterrupt:
        task_id = future.task_id
        print(f"Task {task_id} goes on: %remotegpu attach {task_id}, or %remotegpu stop {task_id}")
        raise
    except errors.ClientError as error:
        if isinstance(error, errors.RemoteFailed):
            raise
        _refuse(sentence(error))
    if isinstance(found, Mapping):
        shell.push(dict(found))
    else:
        print(repr(found))
    for name, why in future.unsent().items():
        print(f"{name} stays there: {why}", file=sys.stderr)


def names_of(cell: str) -> tuple[set[str], set[str]]:
    """The names that a cell reads from outside, and those that it assigns. What it imports stays there.

    :raises ValueError: it has magics or shell commands. :raises SyntaxError: it is no Python.
    """
    for number, line in enumerate(cell.splitlines(), start=1):
        if line.lstrip().startswith(("%", "!")):
            raise ValueError(f"Line {number}: magics and shell commands run here only; {line.strip()!r}.")
    tree = ast.parse(cell)
    tables = list(_tables(symtable.symtable(cell, "<cell>", "exec")))
    top, inner = tables[0], tables[1:]
    assigns = {one.get_name() for one in top.get_symbols() if one.is_assigned()}
    reads = {one.get_name() for one in top.get_symbols() if one.is_referenced()}
    for table in inner:
        for one in table.get_symbols():
            if one.is_global() and one.is_referenced():
                reads.add(one.get_name())
            if one.is_declared_global() and one.is_assigned():
                assigns.add(one.get_name())
    return (reads | _augmented(tree) & assigns) - _written_first(tree), assigns


def _augmented(tree: ast.AST) -> set[str]:
    """Targets of ``a += 1``, which neither the tables nor their nodes count as read."""
    return {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    }


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _written_first(tree: ast.Module) -> set[str]:
    """Names whose first mention gives them a value: an old one of the notebook need not travel."""
    read: set[str] = set()
    written: set[str] = set()
    for statement in tree.body:
        loaded = {
            node.id
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store)
        } | _augmented(statement)
        stored: set[str] = set()
        if isinstance(statement, ast.Assign):
            stored = {node.id for target in statement.targets for node in ast.walk(target)
                      if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}  # fmt: skip
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            stored = {(one.asname or one.name).partition(".")[0] for one in statement.names}
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            stored = {statement.name}
        elif isinstance(statement, ast.For) and isinstance(statement.target, ast.Name):
            inside = {node.id for node in ast.walk(statement.iter) if isinstance(node, ast.Name)}
            read |= inside - written
            stored = {statement.target.id} - inside
            written |= stored - read
        read |= loaded - written
        written |= stored - read
    return written
