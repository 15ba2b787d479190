"""The program on the other side. Its text travels; it needs nothing but cloudpickle, not even our package."""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import linecache
import os
import pickle
import sys
import traceback
import zlib
from typing import Any

MARK = "\x1eremotegpu-result "
"""Begins each line of a result, before the nonce of its script; people are not shown these lines. Anybody can
print it, so a line without the nonce is no result.
"""
CHUNK = 3000
"""Characters of a line: short enough for a pipe to take it whole, whatever else writes."""
MOST = 4 * 2**20
"""Bytes of a result that travel in the output; a larger one is a file."""
RESULT = ".remotegpu/result.pkl"
"""That file, below ``/output``. The output tells its checksum, so that no other file is taken for it."""
RAISED = 1
"""Exit code of a call that did not go well. With any other but 0, it was not this program that ended it."""


def main(header: dict[str, Any], payload: str) -> None:
    """Compare both sides, run, and say how it went."""
    nonce, different = header["nonce"], refusals(header)
    if different:
        finish({"kind": "mismatch", "text": "\n".join(different)}, nonce, exit_code=RAISED)
    try:
        done = _carried_out(_parcel(payload))
        finish(done, nonce, exit_code=0)
    except Exception as error:  # noqa: BLE001  it is raised again where it was called from
        _fail(error, nonce)


def _parcel(payload: str) -> dict[str, Any]:
    """What was sent: in the script, or in a file where it is too large for that."""
    found: dict[str, Any]
    if payload:
        found = pickle.loads(zlib.decompress(base64.b85decode(payload)))
    else:
        with open(os.environ["REMOTEGPU_INPUT"], "rb") as file:
            found = pickle.load(file)
    return found


def refusals(header: dict[str, Any]) -> list[str]:
    """Why what was sent cannot run here, in sentences; smaller differences are only printed."""
    here, there = list(sys.version_info[:2]), header["python"]
    if here != there:
        return [
            f"Python {here[0]}.{here[1]} runs there, Python {there[0]}.{there[1]} here; use an image with it."
        ]
    said = []
    for module, (package, wanted) in sorted(header["packages"].items()):
        if importlib.util.find_spec(module) is None:
            what = f"pip install {package}=={wanted}" if package else "a file of your own"
            said.append(f"The module {module} is not there ({what}).")
        elif package:
            _note(package, wanted)
    return said


def _note(package: str, wanted: str) -> None:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = "of unknown version"
    if found != wanted:
        print(f"remotegpu: {package} {found} is used there, {wanted} here.", file=sys.stderr, flush=True)


def _carried_out(parcel: dict[str, Any]) -> dict[str, Any]:
    if parcel["kind"] == "cell":
        value, left = _run_cell(parcel)
    else:
        index = int(os.environ.get("REMOTEGPU_ARRAY_INDEX") or 0)
        function = pickle.loads(parcel["function"])
        arguments, named = pickle.loads(parcel["calls"][index])
        value, left = function(*arguments, **named), {}
    return _value(value) | {"left": left}


def _run_cell(parcel: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Its names, and those that cannot travel with the reason. A last expression is shown."""
    import cloudpickle

    names: dict[str, Any] = {"__name__": "__main__", **pickle.loads(parcel["variables"])}
    lines = parcel["source"].splitlines(keepends=True)
    linecache.cache["<cell>"] = (len(parcel["source"]), None, lines, "<cell>")  # tracebacks show its lines
    body = ast.parse(parcel["source"], "<cell>").body
    last = [body.pop()] if body and isinstance(body[-1], ast.Expr) else []
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)  # noqa: S102  it is what was asked for
    if last:
        exec(compile(ast.Interactive(list(last)), "<cell>", "single"), names)  # noqa: S102
    brought, left = {}, {}
    for name in parcel["brings"]:
        if name not in names:
            continue
        try:
            cloudpickle.dump(names[name], _Counted())
            brought[name] = names[name]
        except Exception as error:  # noqa: BLE001  pickling raises whatever an object's own code does
            left[name] = str(error)
    return brought, left


def _fail(error: Exception, nonce: str) -> None:
    text = traceback.format_exc()
    sys.stderr.write(text)
    exception = None
    try:
        import cloudpickle

        pickled = cloudpickle.dumps(error)
        if len(pickled) > MOST // 2:
            raise ValueError(f"it has {len(pickled):,} bytes")
        exception = pickled
    except Exception as other:  # noqa: BLE001  then its text has to do
        sys.stderr.write(f"remotegpu: the exception cannot travel: {other}\n")
    text = text[-MOST // 8 :]
    finish({"kind": "error", "exception": exception, "traceback": text}, nonce, exit_code=RAISED)


class _Counted:
    """A file that keeps nothing, and knows how much it was given."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        return size


class _Kept(_Counted):
    """A file in memory, until it is too large for the output: then one in ``/output``."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = io.BytesIO()
        self.sha256 = hashlib.sha256()
        self._file: Any = None

    def write(self, data: Any) -> int:
        raw = pickle.PickleBuffer(data).raw()
        self.sha256.update(raw)
        size = super().write(raw)
        if self._file is None and self.size > MOST:
            self._file = open(result_path(), "wb")  # noqa: SIM115  it is closed below
            self._file.write(self.memory.getbuffer())
            self.memory = io.BytesIO()
        (self._file or self.memory).write(raw)
        return size

    def discard(self) -> None:
        """Half of it is nothing, and the disk may be full: then its end cannot be written either."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            os.unlink(result_path())

    def close(self) -> bool:
        """True: it is in ``/output``."""
        if self._file is not None:
            self._file.close()
        return self._file is not None


def result_path() -> str:
    """Where a result lies that is too large for the output; its folder is made."""
    path = os.path.join(os.environ.get("REMOTEGPU_OUTPUT") or "/output", RESULT)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _value(value: Any) -> dict[str, Any]:
    """It, pickled; or the checksum of the file that it is in."""
    import cloudpickle

    kept = _Kept()
    try:
        cloudpickle.dump(value, kept)
        in_file = kept.close()
    except BaseException:
        kept.discard()
        raise
    if in_file:
        return {"kind": "file", "size_bytes": kept.size, "sha256": kept.sha256.hexdigest()}
    return {"kind": "value", "value": kept.memory.getvalue()}


def finish(answer: dict[str, Any], nonce: str, *, exit_code: int) -> None:
    """Write the answer behind all output, and end."""
    packed = zlib.compress(pickle.dumps(answer))
    text = base64.b64encode(packed).decode()
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    sys.stdout.flush()
    sys.stderr.flush()
    for number, chunk in enumerate(chunks):
        line = f"{MARK}{nonce} {number} {len(chunks)} {chunk}\n".encode()
        while line:
            line = line[os.write(1, line) :]
    sys.exit(exit_code)
