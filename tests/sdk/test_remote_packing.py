"""What may travel to a task and what is refused, and the result that comes back in the output."""

from __future__ import annotations

import base64
import hashlib
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remotegpu
from remotegpu._remote import entry
from remotegpu._remote.answers import Output
from remotegpu._remote.entry import MARK, RESULT
from remotegpu._remote.packing import MOST_SCRIPT, SIGN, Packed, Packer, nonce_of, pack_calls, pack_cell
from remotegpu.types.tasks import TaskInputRoom

ROOM = 12 * 2**20
"""What the server takes of a task here."""


class _Room:
    """The part of a client that packing asks."""

    task_inputs: _Room

    def __init__(self) -> None:
        self.task_inputs = self

    def room(self) -> TaskInputRoom:
        return TaskInputRoom(max_bytes=ROOM, total_max_bytes=ROOM, total_used_bytes=0)


def nobody() -> Any:
    raise AssertionError("nothing is asked about what fits into the script")


def carried_out(script: str, tmp_path: Path, **environ: str) -> tuple[str, Output]:
    """Run a script as an agent would, and take its output in small pieces."""
    file = tmp_path / "script"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"REMOTEGPU_OUTPUT": str(tmp_path), **environ},
        check=False,
        timeout=30,
    )
    output = Output(nonce_of(script))
    shown = "".join(output.shown(done.stdout[at : at + 7]) for at in range(0, len(done.stdout), 7))
    return shown + output.rest(), output


def call(function: Callable[..., object], *arguments: object) -> str:
    return calls(function, [(arguments, {})]).script


def calls(
    function: Callable[..., object],
    given: Sequence[tuple[tuple[object, ...], dict[str, object]]],
    *,
    python: str = "python3",
    client: Callable[[], Any] = nobody,
) -> Packed:
    return pack_calls(function, given, python=python, client=client)


def cell(
    source: str,
    variables: Mapping[str, object],
    brings: Sequence[str] = (),
    *,
    client: Callable[[], Any] = nobody,
) -> Packed:
    return pack_cell(source, variables, brings, python="python3", client=client)


def noise(size: int) -> bytes:
    """Hard to compress."""
    return random.Random(7).randbytes(size)  # noqa: S311  nothing secret


def test_script_says_what_it_is_and_fits() -> None:
    script = call(len, "abc")
    nonce = nonce_of(script)
    assert script.splitlines()[:2] == ["#!/usr/bin/env python3", f"{SIGN} {nonce}"]
    assert len(nonce) == 32
    assert nonce != nonce_of(call(len, "abc"))
    assert nonce_of(None) == nonce_of(f"echo\n{SIGN} x\n") == nonce_of(f"#!/bin/sh\n\n{SIGN} {nonce}\n") == ""
    assert len(script) < 10_000
    assert call(len, "abc").startswith("#!/")
    assert calls(len, [(("abc",), {})], python="/opt/python").script.startswith("#!/opt/python\n")


def test_result_comes_back_whatever_stands_before_it(tmp_path: Path) -> None:
    def writes() -> list[str]:
        print("no end of line, and a mark: \x1eremote", end="")
        return ["x" * 20_000]

    shown, output = carried_out(call(writes), tmp_path)
    assert shown == "no end of line, and a mark: \x1eremote"
    answer = output.answer()
    assert answer is not None
    assert answer.value() == ["x" * 20_000]


def test_result_that_was_cut_off_is_none() -> None:
    output = Output("n0")
    assert output.shown(f"a{MARK}n0 0 2 abc\n{MARK}n0 1 2 d") == "a"
    assert output.rest() == ""
    assert output.answer() is None
    assert output.shown(f"{MARK}nonsense\n") == ""
    assert output.answer() is None


@pytest.mark.parametrize(
    ("nonce", "line"), [("n0", "0 1"), ("n0", "n1 0 1"), ("n0", " 0 1"), ("", " 0 1"), ("", "n1 0 1")]
)
def test_result_without_the_nonce_of_the_script_is_neither_shown_nor_loaded(
    nonce: str, line: str, tmp_path: Path
) -> None:
    forged, loaded = forged_result(tmp_path)
    output = Output(nonce)
    assert output.shown(f"a\n{MARK}{line} {forged}\nb\n") == "a\nb\n"
    assert output.answer() is None
    assert not loaded.exists()
    known = Output("n1")
    known.shown(f"{MARK}n1 0 1 {forged}\n")
    known.answer()
    assert loaded.exists(), "this forged result does nothing, so the test would prove nothing"


def test_traceback_of_what_nothing_catches_does_not_print_the_nonce(tmp_path: Path) -> None:
    def leaves() -> None:
        raise KeyboardInterrupt

    script = call(leaves)
    shown, output = carried_out(script, tmp_path)
    assert "KeyboardInterrupt" in shown
    assert nonce_of(script) not in shown
    assert output.answer() is None


def forged_result(folder: Path) -> tuple[str, Path]:
    """What makes a folder when it is unpickled, as it stands in the line of a result; and that folder."""

    class Forged:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(folder / "loaded"),)

    return base64.b64encode(zlib.compress(pickle.dumps(Forged()))).decode(), folder / "loaded"


def test_large_result_is_a_file_whose_checksum_the_output_tells(tmp_path: Path) -> None:
    def large() -> bytes:
        import os

        return os.urandom(5 * 2**20)

    _, output = carried_out(call(large), tmp_path)
    answer = output.answer()
    assert answer is not None
    assert answer.returned
    assert answer.error() is None
    kept = (tmp_path / RESULT).read_bytes()
    assert answer.file == (hashlib.sha256(kept).hexdigest(), len(kept))
    assert len(pickle.loads(kept)) == 5 * 2**20  # noqa: S301  ours


def test_large_result_that_cannot_travel_leaves_no_half_of_itself(tmp_path: Path) -> None:
    def large() -> list[object]:
        import os
        import threading

        return [os.urandom(5 * 2**20), threading.Lock()]

    _, output = carried_out(call(large), tmp_path)
    answer = output.answer()
    assert answer is not None
    assert isinstance(answer.error(), TypeError)
    assert not (tmp_path / RESULT).exists()


def test_exception_that_is_too_large_comes_back_as_its_text(tmp_path: Path) -> None:
    def fails() -> None:
        import os

        error = ValueError("held")
        error.data = os.urandom(5 * 2**20)  # type: ignore[attr-defined]
        raise error

    shown, output = carried_out(call(fails), tmp_path)
    answer = output.answer()
    assert answer is not None
    error = answer.error()
    assert isinstance(error, remotegpu.RemoteFailed)
    assert "ValueError: held" in str(error)
    assert "the exception cannot travel: it has 5," in shown


def test_exception_that_cannot_travel_comes_back_as_its_text(tmp_path: Path) -> None:
    def fails() -> None:
        import threading

        class Locked(Exception):
            lock = threading.Lock()

        raise Locked("held")

    shown, output = carried_out(call(fails), tmp_path)
    answer = output.answer()
    assert answer is not None
    error = answer.error()
    assert isinstance(error, remotegpu.RemoteFailed)
    assert "Locked: held" in str(error)
    assert "Traceback" in str(error.__cause__)
    assert "Locked: held" in shown


def test_variable_that_cannot_travel_is_named() -> None:
    lock = threading.Lock()

    def holds(number: int) -> None:
        lock.acquire()

    with pytest.raises(remotegpu.NotTransferable, match=r"^lock \(lock\) cannot travel: ") as caught:
        call(holds, 1)
    assert caught.value.variable == "lock"
    with pytest.raises(remotegpu.NotTransferable, match=r"^handle \(lock\)"):
        cell("handle", {"fine": 1, "handle": lock})
    with pytest.raises(remotegpu.NotTransferable, match=r"^number "):
        call(lambda number: number, lock)


def test_variable_that_is_too_large_is_named_with_its_size() -> None:
    variables = {"small": 1, "weights": noise(13 * 2**20)}
    said = r"^weights \(bytes\) has 13\.0 MiB; 12\.0 MiB can travel with a task\. .*volume"
    with pytest.raises(remotegpu.NotTransferable, match=said) as caught:
        cell("len(weights)", variables, client=_Room)
    assert caught.value.variable == "weights"
    together = [((noise(7 * 2**20),), {}), ((noise(7 * 2**20),), {})]
    with pytest.raises(remotegpu.NotTransferable, match=r"7\.0 MiB; 12\.0 MiB can travel"):
        calls(len, together, client=_Room)


@pytest.mark.parametrize("size", [300_000, 6 * 2**20])
def test_what_is_too_large_for_the_script_is_a_file_beside_it(size: int, tmp_path: Path) -> None:
    variables = {"weights": noise(size), "turned": np.asfortranarray(np.eye(800))}
    with cell("n, trace = len(weights), turned.trace()", variables, ["n", "trace"], client=_Room) as packed:
        assert len(packed.script) < 20_000
        assert packed.file is not None
        packed.file.seek(0)
        (tmp_path / "input").write_bytes(packed.file.read())
    _, output = carried_out(packed.script, tmp_path, REMOTEGPU_INPUT=str(tmp_path / "input"))
    answer = output.answer()
    assert answer is not None
    assert answer.value() == {"n": size, "trace": 800.0}


def test_many_calls_travel_in_one_script_and_each_takes_its_own(tmp_path: Path) -> None:
    script = calls(lambda one: one + 1, [((number,), {}) for number in range(300)]).script
    assert len(script) < MOST_SCRIPT
    _, output = carried_out(script, tmp_path, REMOTEGPU_ARRAY_INDEX="299")
    answer = output.answer()
    assert answer is not None
    assert answer.value() == 300


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", ["function", "cell"])
def test_both_sides_are_compared_before_anything_runs(
    kind: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(300_000) if large else b""

    def outcome(**changed: object) -> tuple[str, BaseException | None]:
        with monkeypatch.context() as patch:
            header = Packer.header
            patch.setattr(Packer, "header", lambda packer: header(packer) | changed)
            if kind == "cell":
                packed = cell("print('it runs', len(data))", {"data": data}, client=_Room)
            else:
                packed = calls(lambda _: print("it runs"), [((data,), {})], client=_Room)
        with packed:
            if packed.file is not None:
                packed.file.seek(0)
                (tmp_path / "input").write_bytes(packed.file.read())
        assert (packed.file is not None) == large
        shown, output = carried_out(packed.script, tmp_path, REMOTEGPU_INPUT=str(tmp_path / "input"))
        answer = output.answer()
        assert answer is not None
        return shown, answer.error()

    shown, error = outcome(packages={"cloudpickle": ("cloudpickle", "0.1")})
    assert error is None
    first, then = shown.splitlines()
    assert "cloudpickle" in first
    assert "is used there, 0.1 here" in first
    assert then.startswith("it runs")
    for changed, said in (
        ({"python": [3, 8]}, r"Python 3\.8 here"),
        ({"packages": {"unheard_of": ("unheard-of", "1.0")}}, r"pip install unheard-of==1\.0"),
        ({"packages": {"own": ("", "")}}, r"own is not there \(a file of your own\)"),
    ):
        shown, error = outcome(**changed)
        assert isinstance(error, remotegpu.RemoteMismatch)
        assert re.search(said, str(error))
        assert shown == ""


def test_cell_brings_back_its_names_and_says_which_stay(tmp_path: Path) -> None:
    source = "import threading\ntotal = sum(data)\nlock = threading.Lock()\ntotal * 2\n"
    script = cell(source, {"data": [1, 2]}, ["total", "lock", "unset"]).script
    shown, output = carried_out(script, tmp_path)
    assert shown == "6\n"
    answer = output.answer()
    assert answer is not None
    assert answer.value() == {"total": 3}
    assert "lock" in answer.left


def test_traceback_of_a_cell_shows_its_line(tmp_path: Path) -> None:
    _, output = carried_out(cell("a = 1\na / 0\n", {}).script, tmp_path)
    answer = output.answer()
    assert answer is not None
    assert isinstance(answer.error(), ZeroDivisionError)
    assert "a / 0" in answer.said["traceback"]


def test_missing_extra_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(remotegpu.MissingExtra, match=r"remotegpu\[functions\]"):
        call(len, "abc")


def test_result_that_a_full_disk_does_not_take_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTEGPU_OUTPUT", str(tmp_path))
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = entry._Kept()
    kept.write(bytes(entry.MOST))
    kept.write(b"x")  # the file begins here; one byte of it waits in the buffer for ever
    resource.setrlimit(resource.RLIMIT_FSIZE, (entry.MOST, most[1]))
    try:
        kept.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert os.listdir(tmp_path / ".remotegpu") == []
