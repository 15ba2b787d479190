"""What a task finds in its environment, whatever runs it."""

from __future__ import annotations

from remotegpu.types.agent import ClaimedAttempt
from remotegpu_agent.container_spec import gpu_environment


def environment(spec: ClaimedAttempt, *, output: str, progress: str, input_: str) -> dict[str, str]:
    """Its own variables and the platform's; the platform's win."""
    given = {"REMOTEGPU_INPUT": input_} if spec.input is not None else {}
    return {
        **spec.env,
        **spec.secret_env,
        **gpu_environment(spec.gpu_uuids),
        "REMOTEGPU_TASK_ID": spec.task_id,
        "REMOTEGPU_ATTEMPT_ID": spec.id,
        "REMOTEGPU_ATTEMPT": str(spec.number),
        "REMOTEGPU_RANK": str(spec.rank),
        "REMOTEGPU_OUTPUT": output,
        "REMOTEGPU_PROGRESS_FILE": progress,
        **given,
    }
