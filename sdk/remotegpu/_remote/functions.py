"""Functions that run elsewhere: ``@remotegpu.function(gpus=1)``."""

from __future__ import annotations

import atexit
import functools
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack

from remotegpu import _config
from remotegpu._remote.futures import RETURNED, RemoteFuture, follow
from remotegpu._remote.packing import nonce_of, pack_calls
from remotegpu._sync.client import Client
from remotegpu.errors import NotConfigured, NotTransferable, RemoteGPUError
from remotegpu.types.tasks import TaskArray

P = ParamSpec("P")
T = TypeVar("T")
ENVIRONMENT_ID = "REMOTEGPU_ENVIRONMENT_ID"


class Needs(TypedDict, total=False):
    """What a call needs, as for ``client.tasks.submit``."""

    gpus: int
    gpu_models: Sequence[str]
    gpu_memory_bytes: int
    min_gpu_memory_bytes: int
    mig_profile: str
    host_labels: Mapping[str, str]
    cpus: float
    memory_bytes: int
    env: Mapping[str, str]
    labels: Mapping[str, str]
    workspace: str
    priority: int
    preemptible: bool
    timeout_s: float
    max_retries: int
    retry_on: Sequence[str]


def function(
    *, image: str | None = None, python: str = "python3", client: Client | None = None, **needs: Unpack[Needs]
) -> Callable[[Callable[P, T]], RemoteFunction[P, T]]:
    """Make a function run as a task: ``@remotegpu.function(image="base", gpus=1)``.

    `image` left out: that of the environment one is in. It needs a `python` of the same version as here, on
    its path or with an absolute path, and cloudpickle in it. Calling the function itself runs it here.
    """

    def made(wrapped: Callable[P, T]) -> RemoteFunction[P, T]:
        return RemoteFunction(wrapped, image=image, python=python, client=client, needs=needs)

    return made


class RemoteFunction(Generic[P, RETURNED]):
    """A function that runs here when it is called, and elsewhere by `remote`, `submit` and `map`."""

    def __init__(
        self,
        wrapped: Callable[P, RETURNED],
        *,
        image: str | None,
        python: str,
        client: Client | None,
        needs: Needs,
    ) -> None:
        self._wrapped, self._image, self._python, self._needs = wrapped, image, python, needs
        self._given_client = client
        functools.update_wrapper(self, wrapped)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> RETURNED:
        """Run it here."""
        return self._wrapped(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Inside another one it travels as the plain function: our package need not be on the other side."""
        return functools.partial, (self._wrapped,)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> RETURNED:
        """Run it elsewhere, print its output as it comes, and return what it returns. An interrupt leaves
        the task running and says how to come back.
        """
        future = self.submit(*args, **kwargs)
        follow(future)
        return future.result()

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> RemoteFuture[RETURNED]:
        """Let it run elsewhere; answers at once.

        :raises NotTransferable: a variable cannot be sent, or is too large; nothing was submitted.
        """
        futures, _ = self._submitted([(args, kwargs)], None)
        return futures[0]

    def map(self, *iterables: Iterable[Any], max_parallel: int | None = None) -> Iterator[RETURNED]:
        """Call it with each item of an iterable (of several: with one of each), as the tasks of an array, at
        most `max_parallel` at a time. All is submitted at once; results come in order. When one fails or
        the loop over the results is left, the rest is stopped.
        """
        calls: list[tuple[tuple[object, ...], dict[str, object]]] = [
            (items, {}) for items in zip(*iterables, strict=False)
        ]
        if not calls:
            return iter(())
        array = TaskArray(size=len(calls), max_parallel=max_parallel)
        futures, array_id = self._submitted(calls, array)
        return _results(futures, self._client(), array_id)

    def _client(self) -> Client:
        return self._given_client or default_client()

    def _submitted(
        self, calls: Sequence[tuple[tuple[object, ...], dict[str, object]]], array: TaskArray | None
    ) -> tuple[list[RemoteFuture[RETURNED]], str | None]:
        with pack_calls(self._wrapped, calls, python=self._python, client=self._client) as packed:
            client = self._client()
            name = task_name(getattr(self._wrapped, "__name__", "function"))
            made = client.tasks.submit(
                image=self._image or own_image(client),
                script=packed.script,
                input_sha256=packed.sent_by(client),
                name=name,
                array=array,
                **self._needs,
            )
        tasks = made.tasks
        if made.count > len(tasks):
            tasks = sorted(client.tasks.list(array=made.array_id), key=lambda task: task.array_index or 0)
        return [RemoteFuture(client, task.id, nonce_of(packed.script)) for task in tasks], made.array_id


def _results(
    futures: list[RemoteFuture[T]], client: Client, array_id: str | None
) -> Generator[T, None, None]:
    try:
        for future in futures:
            yield future.result()
    except BaseException:
        if array_id is not None:
            _stop(client, array_id)
        raise


def _stop(client: Client, array_id: str) -> None:
    """What went wrong before matters more than that this fails, which is only said."""
    try:
        client.task_arrays.stop(array_id)
    except RemoteGPUError as error:
        sys.stderr.write(f"remotegpu: the array {array_id} was not stopped: {error}\n")


def attach(task_id: str, *, client: Client | None = None) -> RemoteFuture[Any]:
    """The future of a call that was submitted before, perhaps by a process that is gone. The result of a
    cell are its names.

    :raises NotTransferable: the task is no such call, or of somebody else: results are unpickled, and
        that runs what its author wants.
    """
    client = client or default_client()
    task = client.tasks.get(task_id)
    nonce = nonce_of(task.script)
    if not nonce:
        raise NotTransferable(f"Task {task_id} is no function or cell; see `remotegpu task logs {task_id}`.")
    me = client.me.get()
    if me.user is None or me.user.id != task.owner_id:
        raise NotTransferable(f"Task {task_id} belongs to {task.owner}; results are for their owners only.")
    return RemoteFuture(client, task_id, nonce)


def default_client() -> Client:
    """The client of the server that is configured; the same one as long as that stays."""
    return _client(_config.resolve(None, None))


@functools.lru_cache(maxsize=1)
def _client(target: _config.Target) -> Client:
    client = Client(target.url, target.token)
    atexit.register(client.close)
    return client


def own_image(client: Client) -> str:
    """The image of the environment that this runs in. :raises NotConfigured: it runs in none."""
    environment_id = os.environ.get(ENVIRONMENT_ID)
    if not environment_id:
        raise NotConfigured("Say which image: image= names one of `remotegpu image list`.")
    return client.environments.get(environment_id).image


def task_name(text: str) -> str:
    """The nearest name that a task may have."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "function"
