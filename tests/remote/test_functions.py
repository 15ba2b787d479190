"""``@remotegpu.function``: called here, run by a real agent, with what comes back."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

import remotegpu
from remotegpu.types.tasks import Task, TaskArrayState

FACTOR = 3


class Odd(Exception):
    """An exception of the caller's own module, which the other side does not have."""


@remotegpu.function(image="base", gpus=1)
def times(number: int, *, add: int = 0) -> int:
    print("multiplying", number)
    return number * FACTOR + add


@remotegpu.function(image="base")
def refuses(number: int) -> None:
    raise Odd(f"no {number}")


@remotegpu.function(image="base")
def waits(file: str) -> str:
    import time
    from pathlib import Path

    while not Path(file).exists():
        time.sleep(0.02)
    return os.environ["REMOTEGPU_TASK_ID"]


@remotegpu.function(image="base", cpus=0.1)
def fails_or_waits(number: int, file: str) -> None:
    import time
    from pathlib import Path

    while number and not Path(file).exists():
        time.sleep(0.02)
    raise Odd(f"no {number}")


class Tells:
    """Whoever unpickles it makes a folder."""

    def __init__(self, made: Path, data: bytes) -> None:
        self.made, self.data = made, data

    def __reduce__(self) -> tuple[object, ...]:
        return _make, (str(self.made), self.data)


def _make(folder: str, data: bytes) -> None:
    os.mkdir(folder)


@pytest.fixture(autouse=True)
def _on_the_site(client: remotegpu.Client) -> Iterator[None]:
    yield
    assert [task.id for task in client.tasks.list(status=["pending", "assigned", "running"])] == []


def test_call_returns_its_value_and_shows_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert times.remote(14, add=1) == 43
    assert capsys.readouterr().out == "multiplying 14\n"
    assert times(2) == 6


def test_exception_of_the_other_side_is_raised_here_with_its_traceback() -> None:
    future = refuses.submit(7)
    with pytest.raises(Odd, match="no 7") as caught:
        future.result(60)
    assert "in refuses" in str(caught.value.__cause__)
    assert isinstance(future.exception(), Odd)


def test_map_answers_in_order(client: remotegpu.Client) -> None:
    assert list(times.map([1, 2, 3], max_parallel=2)) == [3, 6, 9]
    assert list(times.map([])) == []


def test_map_that_fails_stops_the_rest_in_one_call(
    client: remotegpu.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stopped = _stops(client, monkeypatch)
    with pytest.raises(Odd, match="no 0"):
        list(fails_or_waits.map([0, 1, 2, 3], [str(tmp_path / "never")] * 4))
    (array_id,) = stopped
    ended = [client.tasks.wait(task.id, timeout_s=60, progress=False) for task in _tasks(client, array_id)]
    assert [task.status for task in ended] == ["failed", "cancelled", "cancelled", "cancelled"]


def test_map_that_is_left_stops_the_rest(
    client: remotegpu.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stopped = _stops(client, monkeypatch)
    (tmp_path / "go").touch()
    results = waits.map([str(tmp_path / "go"), str(tmp_path / "never")])
    assert isinstance(results, Generator)
    first = next(results)
    results.close()
    (array_id,) = stopped
    ended = [client.tasks.wait(task.id, timeout_s=60, progress=False) for task in _tasks(client, array_id)]
    assert [(task.id == first, task.status) for task in ended] == [(True, "succeeded"), (False, "cancelled")]


def test_map_that_cannot_stop_the_rest_still_says_what_failed(
    client: remotegpu.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = _stops(client, monkeypatch, remotegpu.ConnectionFailed("away"))
    with pytest.raises(Odd, match="no 1"):
        list(refuses.map([1, 2]))
    (array_id,) = stopped
    assert capsys.readouterr().err == f"remotegpu: the array {array_id} was not stopped: away\n"
    for task in _tasks(client, array_id):
        client.tasks.wait(task.id, timeout_s=60, progress=False)


def _stops(
    client: remotegpu.Client, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None
) -> list[str]:
    """The arrays that are stopped from here on; or the attempts to, with an error."""
    arrays = type(client.task_arrays)
    stop, seen = arrays.stop, list[str]()

    def stops(self: object, array_id: str) -> TaskArrayState:
        seen.append(array_id)
        if error is not None:
            raise error
        return stop(self, array_id)  # type: ignore[arg-type]

    monkeypatch.setattr(arrays, "stop", stops)
    return seen


def _tasks(client: remotegpu.Client, array_id: str) -> list[Task]:
    return sorted(client.tasks.list(array=array_id), key=lambda task: task.array_index or 0)


def test_future_is_found_again_by_its_task(client: remotegpu.Client, tmp_path: Path) -> None:
    future = waits.submit(str(tmp_path / "go"))
    assert not future.done()
    with pytest.raises(remotegpu.WaitTimeout):
        future.result(0.1)
    called = threading.Event()
    future.add_done_callback(lambda ended: called.set())
    again: remotegpu.RemoteFuture[str] = remotegpu.attach(future.task_id)
    (tmp_path / "go").touch()
    assert again.result(60) == future.task_id == future.result(60)
    assert called.wait(10)
    at_once = threading.Event()
    future.add_done_callback(lambda ended: at_once.set())
    assert at_once.wait(10)


def test_cancelled_call_is_stopped(tmp_path: Path) -> None:
    future = waits.submit(str(tmp_path / "never"))
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(60)
    assert future.cancelled()
    assert not future.cancel()


def test_other_tasks_are_not_attached_to(client: remotegpu.Client) -> None:
    task = client.tasks.submit(image="base", command=["true"]).tasks[0]
    client.tasks.wait(task.id, timeout_s=60, progress=False)
    with pytest.raises(remotegpu.NotTransferable, match="no function"):
        remotegpu.attach(task.id)


def test_task_of_another_person_is_not_attached_to(client: remotegpu.Client) -> None:
    client.users.create(username="ada", password="correct horse battery")
    with remotegpu.Client(client.url, "") as nobody:
        session = nobody.auth.login(username="ada", password="correct horse battery")
    with remotegpu.Client(client.url, session.secret) as ada:
        future = remotegpu.function(image="base", client=ada)(os.getpid).submit()
        assert client.tasks.get(future.task_id).owner == "ada", "an admin sees it"
        with pytest.raises(remotegpu.NotTransferable, match="belongs to ada"):
            remotegpu.attach(future.task_id, client=client)
        assert remotegpu.attach(future.task_id, client=ada).result(60) != os.getpid()


def test_task_that_ends_without_a_result_says_how() -> None:
    @remotegpu.function(image="base")
    def ends() -> None:
        os._exit(9)

    with pytest.raises(remotegpu.WaitFailed, match="failed"):
        ends.submit().result(60)


@pytest.mark.parametrize(("exit_code", "knows_the_nonce"), [(0, False), (1, False), (9, False), (9, True)])
def test_result_that_somebody_forged_is_not_loaded(
    exit_code: int, knows_the_nonce: bool, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"

    @remotegpu.function(image="base")
    def prints_it(made: str) -> None:
        import base64
        import pickle
        import sys
        import zlib
        from pathlib import Path

        class Forged:
            def __reduce__(self) -> tuple[object, ...]:
                return os.mkdir, (made,)

        nonce = Path(sys.argv[0]).read_text().splitlines()[1].split()[-1] if knows_the_nonce else "0" * 32
        line = base64.b64encode(zlib.compress(pickle.dumps(Forged()))).decode()
        print(f"\n\x1eremotegpu-result {nonce} 0 1 {line}\n\x1eremotegpu-result 0 1 {line}", flush=True)
        os._exit(exit_code)

    for follows in (False, True):
        future = prints_it.submit(str(loaded))
        if follows:
            assert "".join(future.output()) == "\n"
        with pytest.raises(remotegpu.WaitFailed):
            future.result(60)
        assert not loaded.exists()


def test_large_arguments_and_results_travel_as_files(client: remotegpu.Client) -> None:
    @remotegpu.function(image="base")
    def turned(data: bytes) -> bytes:
        return data[::-1]

    data = os.urandom(5 * 2**20)
    first = turned.submit(data)
    assert first.result(60) == data[::-1] == remotegpu.attach(first.task_id).result(60)
    size = client.tasks.get(first.task_id).input_size_bytes
    assert size is not None
    assert size > len(data)
    assert [one.path for one in client.tasks.artifacts(first.task_id)] == [".remotegpu/result.pkl"]
    used = client.task_inputs.room().total_used_bytes
    assert turned.submit(data).result(60) == data[::-1]
    assert client.task_inputs.room().total_used_bytes == used, "the same is sent once"
    assert list(turned.map([data, b"abc"])) == [data[::-1], b"cba"]


def test_large_result_that_somebody_replaced_is_not_loaded(tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"

    @remotegpu.function(image="base")
    def replaces(made: str) -> bytes:
        import atexit
        import pickle
        from pathlib import Path

        class Forged:
            def __reduce__(self) -> tuple[object, ...]:
                return os.mkdir, (made,)

        file = Path(os.environ["REMOTEGPU_OUTPUT"], ".remotegpu", "result.pkl")
        atexit.register(lambda: file.write_bytes(pickle.dumps(Forged())))
        return os.urandom(5 * 2**20)

    with pytest.raises(remotegpu.ResultTooLarge, match="was not kept"):
        replaces.submit(str(loaded)).result(60)
    assert not loaded.exists()


def test_argument_above_the_limit_of_the_site_is_refused_with_its_size(client: remotegpu.Client) -> None:
    client.settings.set("tasks.input_max_bytes", 2**20 * 5)
    before = len(list(client.tasks.list()))
    said = r"number \(bytes\) has 6\.0 MiB; 5\.0 MiB can travel"
    try:
        with pytest.raises(remotegpu.NotTransferable, match=said) as caught:
            times.submit(bytes(6 * 2**20))  # type: ignore[arg-type]
    finally:
        client.settings.reset("tasks.input_max_bytes")
    assert caught.value.variable == "number"
    assert len(list(client.tasks.list())) == before


@pytest.mark.parametrize("large", [False, True])
def test_another_python_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, large: bool
) -> None:
    from remotegpu._remote.packing import Packer

    header = Packer.header

    def older(packer: Packer) -> dict[str, object]:
        return header(packer) | {"python": [3, 8]}

    monkeypatch.setattr(Packer, "header", older)
    never = Tells(tmp_path / "loaded", os.urandom(5 * 2**20 if large else 1))
    with pytest.raises(remotegpu.RemoteMismatch, match=r"Python 3\.8 here"):
        waits.submit(never).result(60)  # type: ignore[arg-type]
    assert not never.made.exists(), "not even unpickled"


def test_missing_package_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from remotegpu._remote.packing import Packer

    header = Packer.header

    def more(packer: Packer) -> dict[str, object]:
        found = header(packer)
        return found | {"packages": {**found["packages"], "unheard_of": ("unheard-of", "1.0")}}

    monkeypatch.setattr(Packer, "header", more)
    with pytest.raises(remotegpu.RemoteMismatch, match=r"pip install unheard-of==1\.0"):
        waits.submit(str(tmp_path / "never")).result(60)
