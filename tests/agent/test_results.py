"""What the server is told of an end."""

from __future__ import annotations

import pytest

from remotegpu_agent.tasks import results
from remotegpu_agent.tasks.folders import Stop


@pytest.mark.parametrize(
    ("told", "reason"),
    [("preempted", "preempted"), (None, "cancelled"), ("of_a_newer_server", "of_a_newer_server"),
     ("x" * 300, "x" * 256)],
)  # fmt: skip
def test_reason_of_a_stop_goes_back_as_the_server_said_it(told: str | None, reason: str) -> None:
    result = results.of_stop(Stop(why="cancelled", reason=told, at_s=0.0, grace_s=1.0), None)
    assert (str(result.status), result.reason) == ("cancelled", reason)
