"""What travels: a function with its arguments, or a cell with its variables, as the script of a task."""

from __future__ import annotations

import base64
import inspect
import json
import pickle
import re
import secrets
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata, resources
from typing import Any

from remotegpu.errors import MissingExtra, NotTransferable

MOST_BYTES = 10 * 2**20
"""Of pickled objects, before they are compressed."""
MOST_SCRIPT = 262_144
"""Characters of a task's script, in which everything travels for now."""
SIGN = "# remotegpu-function 2"
"""Begins the second line of each script that we make; its nonce follows."""


class _Pickled:
    """A file that counts what it no longer keeps, so that a refusal knows the size and memory stays small."""

    def __init__(self) -> None:
        self.size = 0
        self._kept: list[bytes] = []

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        if self.size <= MOST_BYTES:
            self._kept.append(bytes(data))
        return size

    @property
    def data(self) -> bytes:
        return b"".join(self._kept)


class Packer:
    """Pickles, and remembers which modules the other side needs for it."""

    def __init__(self) -> None:
        self._cloudpickle = _cloudpickle()
        self._modules: set[str] = set()

    def pickled(self, value: object, variables: Mapping[str, object]) -> bytes:
        """`value` in bytes. :raises NotTransferable: names the one of `variables` that is the cause."""
        try:
            packed = self._dump(value)
        except Exception as error:  # pickling raises whatever an object's own code does
            raise self._cause(variables, error) from error
        if packed.size > MOST_BYTES:
            raise self._too_large(variables, packed.size)
        return packed.data

    def _dump(self, value: object) -> _Pickled:
        file, modules = _Pickled(), self._modules

        class Pickler(self._cloudpickle.Pickler):  # type: ignore[misc, name-defined]
            def reducer_override(self, thing: Any) -> Any:
                name = thing.__name__ if inspect.ismodule(thing) else getattr(thing, "__module__", None)
                modules.add(str(name or "").partition(".")[0])
                modules.add(type(thing).__module__.partition(".")[0])
                return super().reducer_override(thing)

        Pickler(file).dump(value)
        return file

    def _cause(self, variables: Mapping[str, object], error: Exception) -> NotTransferable:
        for name, value in variables.items():
            try:
                self._dump(value)
            except Exception as own:  # noqa: BLE001  as above
                return NotTransferable(
                    f"{name} ({type(value).__qualname__}) cannot travel: {own}. Make it over there, or send "
                    "what it is made from.",
                    variable=name,
                )
        return NotTransferable(f"This cannot travel: {error}", variable=None)

    def too_large(self, variables: Mapping[str, object], *, room: int) -> NotTransferable:
        """The refusal of what is larger than a script, once it is compressed."""
        return self._too_large(variables, None, room=room)

    def _too_large(
        self, variables: Mapping[str, object], size: int | None, *, room: int = MOST_BYTES
    ) -> NotTransferable:
        sizes = {name: self._dump(value).size for name, value in variables.items()}
        name = max(sizes, key=lambda one: sizes[one], default=None)
        worst = (
            f"{name} ({type(variables[name]).__qualname__}) has {_amount(sizes[name])}" if name else "It has"
        )
        limit = f"{_amount(room)} can travel" + (" together, compressed" if size is None else "")
        return NotTransferable(
            f"{worst}; {limit}. Make it there, or read it there from a file.",
            variable=name,
        )

    def header(self) -> dict[str, Any]:
        """Our side of the comparison."""
        packages = {"cloudpickle": ("cloudpickle", metadata.version("cloudpickle"))}
        by_value = {name.partition(".")[0] for name in self._cloudpickle.list_registry_pickle_by_value()}
        ours = sys.stdlib_module_names | by_value | {"", "__main__", "__mp_main__"}
        for module in self._modules - ours:
            if module in sys.modules:
                packages[module] = _distribution(module)
        return {"python": list(sys.version_info[:2]), "packages": packages}


def pack_calls(
    function: Callable[..., object],
    calls: Sequence[tuple[tuple[object, ...], dict[str, object]]],
    *,
    python: str,
) -> str:
    """The script of a task that calls `function`; of an array, whose tasks take one of `calls` each."""
    packer = Packer()
    with _by_value(function):
        known = _captured(function)
        parcel = {
            "kind": "function",
            "function": packer.pickled(function, known),
            "calls": [packer.pickled(call, _named(function, *call)) for call in calls],
        }
        variables = known | {
            f"{name} of call {number}" if len(calls) > 1 else name: value
            for number, call in enumerate(calls[:100])
            for name, value in _named(function, *call).items()
        }
        return _script(packer, parcel, variables, python)


def pack_cell(source: str, variables: Mapping[str, object], brings: Sequence[str], *, python: str) -> str:
    """The script of a task that runs `source` with `variables` and brings back the names `brings`."""
    packer = Packer()
    parcel = {
        "kind": "cell",
        "source": source,
        "variables": packer.pickled(dict(variables), variables),
        "brings": list(brings),
    }
    return _script(packer, parcel, variables, python)


def _script(packer: Packer, parcel: dict[str, Any], variables: Mapping[str, object], python: str) -> str:
    payload = base64.b85encode(zlib.compress(pickle.dumps(parcel), 6)).decode()
    program = resources.files("remotegpu._remote").joinpath("entry.py").read_text(encoding="utf-8")
    start = f"#!{python}" if python.startswith("/") else f"#!/usr/bin/env {python}"
    nonce = secrets.token_hex(16)
    header = json.dumps(json.dumps(packer.header() | {"nonce": nonce}))
    head = f"{start}\n{SIGN} {nonce}\n{program}\n\nimport json\nHEADER = {header}\nPAYLOAD = '"
    tail = "'\nmain(json.loads(HEADER), PAYLOAD)\n"  # by name, so that no traceback prints them
    room = MOST_SCRIPT - len(head) - len(tail)
    if len(payload) > room:
        raise packer.too_large(variables, room=room * 4 // 5)
    return head + payload + tail


def nonce_of(script: str | None) -> str:
    """What each line of the result of this script carries; empty: it is no script of ours."""
    second = (script or "").split("\n", 2)[1:2]
    found = re.fullmatch(rf"{SIGN} ([0-9a-f]{{32}})", second[0]) if second else None
    return found[1] if found else ""


@contextmanager
def _by_value(function: Callable[..., object]) -> Iterator[None]:
    """A module that is a file of the caller's own is not on the other side: its functions travel whole."""
    cloudpickle = _cloudpickle()
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    own = module is not None and module.__name__ != "__main__" and _distribution(module.__name__)[0] == ""
    if not own or module.__name__ in cloudpickle.list_registry_pickle_by_value():  # type: ignore[union-attr]
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _captured(function: Callable[..., object]) -> dict[str, object]:
    """The variables around a function that it reads."""
    try:
        found = inspect.getclosurevars(function)
    except TypeError:  # something callable that is no function
        return {}
    return {**found.globals, **found.nonlocals}


def _named(
    function: Callable[..., object], arguments: tuple[object, ...], named: dict[str, object]
) -> dict[str, object]:
    try:
        return dict(inspect.signature(function).bind(*arguments, **named).arguments)
    except ValueError:  # built in, without a signature
        return {f"argument {number}": value for number, value in enumerate(arguments)} | named


def _distribution(module: str) -> tuple[str, str]:
    found = _distributions().get(module.partition(".")[0])
    return (found[0], metadata.version(found[0])) if found else ("", "")


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError as error:
        raise MissingExtra(
            "Functions and cells travel with cloudpickle: pip install 'remotegpu[functions]'"
        ) from error
    return cloudpickle


def _amount(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
