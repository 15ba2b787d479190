"""What travels: a function with its arguments, or a cell with its variables, as the script of a task.

What is too large for the script is a file that is sent before (``client.task_inputs``).
"""

from __future__ import annotations

import base64
import inspect
import json
import pickle
import re
import secrets
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from remotegpu.errors import MissingExtra, NotTransferable, PayloadTooLarge, RemoteGPUError

if TYPE_CHECKING:
    from remotegpu._sync.client import Client

INLINE_BYTES = 4 * 2**20
"""Pickled objects up to here may fit into the script once they are compressed."""
MOST_SCRIPT = 262_144
"""Characters of a task's script."""
PROTOCOL = 5
"""Of the parcel: every Python from 3.8 on reads it."""
SIGN = "# remotegpu-function 2"
"""Begins the second line of each script that we make; its nonce follows."""


class _Pickled:
    """A file that counts what it no longer keeps, so that a refusal knows the size and memory stays small."""

    def __init__(self, most: Callable[[int], int]) -> None:
        """`most` answers how many bytes are kept, of at least so many."""
        self.size = 0
        self.data = bytearray()
        self._most = most

    def write(self, data: Any) -> int:
        raw = pickle.PickleBuffer(data).raw()
        self.size += raw.nbytes
        if self.size <= self._most(self.size):
            self.data += raw
        else:
            self.data = bytearray()
        return raw.nbytes


@dataclass(frozen=True)
class Packed:
    """A script, and the file that it reads if it has one; to be closed."""

    script: str
    file: BinaryIO | None
    variables: Mapping[str, object] = field(repr=False)
    packer: Packer = field(repr=False)

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def sent_by(self, client: Client) -> str | None:
        """Checksum of the file, once the server has it. :raises NotTransferable: it is too large."""
        if self.file is None:
            return None
        try:
            return client.task_inputs.upload(self.file).sha256
        except PayloadTooLarge as error:
            raise self.packer.too_large(self.variables, most=int(str(error.data["limit"]))) from error


class Packer:
    """Pickles, and remembers which modules the other side needs for it."""

    def __init__(self, client: Callable[[], Client]) -> None:
        """`client` is asked what may be sent, once something is large."""
        self._cloudpickle = _cloudpickle()
        self._modules: set[str] = set()
        self._client = client
        self._room: int | None = None
        self._packed = 0

    def pickled(self, value: object, variables: Mapping[str, object]) -> bytearray:
        """`value` in bytes. :raises NotTransferable: names the one of `variables` that is the cause, or says
        how large all together is.
        """
        try:
            packed = self._dump(value, self._most)
        except RemoteGPUError:  # of the server that was asked
            raise
        except Exception as error:  # pickling raises whatever an object's own code does
            raise self._cause(variables, error) from error
        self._packed += packed.size
        if self._packed > self._most(self._packed):
            raise self.too_large(variables, most=self._most(self._packed))
        return packed.data

    def _most(self, size: int) -> int:
        if size <= INLINE_BYTES:
            return INLINE_BYTES
        if self._room is None:
            self._room = self._client().task_inputs.room().max_bytes
        return self._room

    def _dump(self, value: object, most: Callable[[int], int]) -> _Pickled:
        file, modules = _Pickled(most), self._modules

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
                self._dump(value, _nothing)
            except Exception as own:  # noqa: BLE001  as above
                return NotTransferable(
                    f"{name} ({type(value).__qualname__}) cannot travel: {own}. Make it over there, or send "
                    "what it is made from.",
                    variable=name,
                )
        return NotTransferable(f"This cannot travel: {error}", variable=None)

    def too_large(self, variables: Mapping[str, object], *, most: int) -> NotTransferable:
        """The refusal of what may not be sent: which variable it is, and how large."""
        sizes = {name: self._dump(value, _nothing).size for name, value in variables.items()}
        name = max(sizes, key=lambda one: sizes[one], default=None)
        if name is None:
            what = f"It has {_amount(self._packed)}"
        else:
            what = f"{name} ({type(variables[name]).__qualname__}) has {_amount(sizes[name])}"
        return NotTransferable(
            f"{what}; {_amount(most)} can travel with a task. Make it there, or put it on a volume or into a "
            "dataset and read it there.",
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
    client: Callable[[], Client],
) -> Packed:
    """The task that calls `function`; of an array, whose tasks take one of `calls` each."""
    packer = Packer(client)
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
        return _packed(packer, parcel, variables, python)


def pack_cell(
    source: str,
    variables: Mapping[str, object],
    brings: Sequence[str],
    *,
    python: str,
    client: Callable[[], Client],
) -> Packed:
    """The task that runs `source` with `variables` and brings back the names `brings`."""
    packer = Packer(client)
    parcel = {
        "kind": "cell",
        "source": source,
        "variables": packer.pickled(dict(variables), variables),
        "brings": list(brings),
    }
    return _packed(packer, parcel, variables, python)


def _packed(packer: Packer, parcel: dict[str, Any], variables: Mapping[str, object], python: str) -> Packed:
    program = resources.files("remotegpu._remote").joinpath("entry.py").read_text(encoding="utf-8")
    start = f"#!{python}" if python.startswith("/") else f"#!/usr/bin/env {python}"
    nonce = secrets.token_hex(16)
    header = json.dumps(json.dumps(packer.header() | {"nonce": nonce}))
    head = f"{start}\n{SIGN} {nonce}\n{program}\n\nimport json\nHEADER = {header}\nPAYLOAD = '"
    tail = "'\nmain(json.loads(HEADER), PAYLOAD)\n"  # by name, so that no traceback prints them
    payload, file = _inline(parcel, room=MOST_SCRIPT - len(head) - len(tail)), None
    if payload is None:
        payload, file = "", _in_file(parcel)
    return Packed(head + payload + tail, file, variables, packer)


def _inline(parcel: dict[str, Any], *, room: int) -> str | None:
    """``None``: it is too large for the script."""
    size = sum(len(one) for one in (*parcel.get("calls", ()), *parcel.values()) if isinstance(one, bytearray))
    if size > INLINE_BYTES:
        return None
    payload = base64.b85encode(zlib.compress(pickle.dumps(parcel, PROTOCOL), 6)).decode()
    return payload if len(payload) <= room else None


def _in_file(parcel: dict[str, Any]) -> BinaryIO:
    """A temporary file. The same parcel makes the same bytes, so that it is sent once. Not compressed: that
    takes longer than it saves for what is large, and the copies would need more memory.
    """
    file = tempfile.TemporaryFile(prefix="remotegpu-")  # noqa: SIM115  `Packed` closes it
    try:
        pickle.dump(parcel, file, PROTOCOL)
    except BaseException:
        file.close()
        raise
    return cast("BinaryIO", file)


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


def _nothing(size: int) -> int:
    """For a file that only counts."""
    return 0


def _amount(size: int) -> str:
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
