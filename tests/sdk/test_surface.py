"""What the package offers, what it costs to import, and that both clients are one."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import remotegpu
from remotegpu import errors

ROOT = Path(__file__).parents[2]

PUBLIC = """
AccountSuspended ApiError AsyncClient AttemptFinal AttemptMismatch BadRequest Client
ClientError Conflict ConnectionFailed
EnrollmentTokenUsed EpochStale ErrorCode Forbidden GenerationStale IdempotencyMismatch
ImageNotAllowed InUse Invalid InvalidCredentials LeaseExpired MissingExtra NameTaken NoCapacity NotConfigured
NotFound
PasswordChangeRequired PasswordResetInvalid PayloadTooLarge QuotaExceeded RateLimited RemoteGPUError
RequestTimeout ServerError StateConflict
TokenInvalid Unauthorized Unavailable UnexpectedAnswer Unsatisfiable WaitFailed WaitTimeout
NotTransferable RemoteFailed RemoteFunction RemoteFuture RemoteMismatch ResultTooLarge
__version__ attach errors function report_progress types
"""


def imported_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys; {code}; print(json.dumps([*sys.modules]))"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "REMOTEGPU_URL": "http://127.0.0.1:1"},
    )
    return set(json.loads(done.stdout))


def test_public_names_are_these_and_all_can_be_had() -> None:
    assert sorted(remotegpu.__all__) == sorted(PUBLIC.split())
    assert all(getattr(remotegpu, name) is not None for name in remotegpu.__all__)
    assert set(remotegpu.__all__) <= set(dir(remotegpu))


def test_every_error_class_is_public() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and name[0].isupper()}
    assert classes - {"ClassVar", "StrEnum"} <= set(remotegpu.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Cleint'"):
        remotegpu.Cleint  # noqa: B018


def test_version_is_that_of_the_distribution() -> None:
    assert f'version = "{remotegpu.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_import_alone_loads_nothing_of_ours_and_no_dependency() -> None:
    found = imported_after("import remotegpu")
    assert not {name for name in found if name.startswith("remotegpu.")}
    assert not found & {"httpx", "pydantic", "typing", "asyncio"}


def test_ready_client_has_loaded_no_pydantic_and_no_resource() -> None:
    found = imported_after("import remotegpu; remotegpu.Client()")
    assert "httpx" in found
    assert "pydantic" not in found
    assert not {name for name in found if name.startswith(("remotegpu.types", "remotegpu._sync.resources"))}


def test_first_use_loads_the_types_of_that_resource_only() -> None:
    found = imported_after("import remotegpu; remotegpu.Client().images")
    assert "remotegpu.types.images" in found
    assert not found & {"remotegpu.types.agent", "remotegpu.types.environments", "remotegpu.types.identity"}


def test_help_of_the_command_line_needs_no_dependency() -> None:
    found = imported_after("from remotegpu.cli.parser import make_parser; make_parser().format_help()")
    assert not found & {"httpx", "pydantic"}


def test_blocking_client_is_generated_from_the_asyncio_one() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "sdk" / "generate_sync.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def resources(client: type) -> dict[str, type]:
    """The resource classes of a client by attribute, loaded the way a program loads them."""
    made = client("http://127.0.0.1:1", "")
    names = [name for name, value in vars(client).items() if type(value).__name__ == "cached_property"]
    return {name: type(getattr(made, name)) for name in names}


def signatures(kind: type) -> dict[str, list[tuple[str, object, str]]]:
    return {
        name: [
            (one.name, one.default, str(one.annotation))
            for one in inspect.signature(method).parameters.values()
        ]
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    blocking, asyncio_ = resources(remotegpu.Client), resources(remotegpu.AsyncClient)
    assert blocking.keys() == asyncio_.keys()
    assert len(blocking) > 10
    for name in blocking:
        assert signatures(blocking[name]) == signatures(asyncio_[name]), name
        assert signatures(blocking[name])


def test_httpx_is_imported_in_one_module() -> None:
    importers = [
        path.name
        for path in (ROOT / "sdk").rglob("*.py")
        if any(
            line.strip().startswith(("import httpx", "from httpx")) for line in path.read_text().splitlines()
        )
    ]
    assert importers == ["_http.py"]
