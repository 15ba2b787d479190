"""Arguments that a type checker lets through, or nobody checked, and that would mean something else."""

from __future__ import annotations

from typing import Any

import pytest

import remotegpu


@pytest.mark.parametrize(
    ("resource", "method", "given", "said"),
    [
        ("tasks", "submit", {"image": "b", "command": "echo hi"}, r"command is a list .*\['echo', 'hi'\]"),
        ("tasks", "submit", {"image": "base", "retry_on": "failed"}, "retry_on is a list"),
        ("tasks", "submit", {"image": "base", "array": 3}, r"array takes .*tasks\.TaskArray, and not 3"),
        ("tasks", "submit", {"image": "base", "depends_on": ["tsk-1"]}, "depends_on takes .*Dependency"),
        ("tasks", "list", {"labels": "run=1"}, "labels is a list"),
        ("environments", "create", {"name": "a", "image": "b", "gpu_models": "A100"}, "gpu_models is a list"),
        ("environments", "create", {"name": "a", "image": "base", "idle": 60}, "idle takes .*IdlePolicy"),
        ("tokens", "create", {"name": "ci", "scopes": "read"}, "scopes is a list"),
    ],
)  # fmt: skip
def test_argument_of_another_kind_is_refused_before_anything_is_sent(
    resource: str, method: str, given: dict[str, Any], said: str
) -> None:
    client = remotegpu.Client("http://127.0.0.1:1", "", max_retries=0)
    with client, pytest.raises(TypeError, match=said):
        getattr(getattr(client, resource), method)(**given)
