"""Enums of the wire: lenient in answers, strict in requests."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from remotegpu._protocol import READING
from remotegpu.types.environments import EnvironmentStatus


def test_value_of_a_newer_server_is_read_as_unknown() -> None:
    adapter = TypeAdapter(EnvironmentStatus)
    assert adapter.validate_json('"hibernating"', context=READING) is EnvironmentStatus.UNKNOWN


def test_unknown_value_in_a_request_is_refused_and_the_known_ones_are_named() -> None:
    adapter = TypeAdapter(EnvironmentStatus)
    with pytest.raises(ValidationError, match="'running'"):
        adapter.validate_python("hibernating")
    assert adapter.validate_python("running") is EnvironmentStatus.RUNNING
