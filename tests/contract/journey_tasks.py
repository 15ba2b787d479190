"""Tasks, from both sides."""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile

from recording import World

from remotegpu.types import agent as wire
from remotegpu.types.task_schedules import Overlap
from remotegpu.types.tasks import Dependency, TaskArray, TaskSpec

_SHA256 = hashlib.sha256(b"hi").hexdigest()


async def drive(world: World) -> None:
    user, agent = world.user, world.agent
    assert agent is not None
    host = agent.client.agent
    assert (await user.task_inputs.room()).total_used_bytes == 0
    sent = await user.task_inputs.send(_SHA256, size_bytes=2, offset=0, data=b"h")
    assert (sent.received_bytes, sent.complete) == (1, False)
    sent = await user.task_inputs.upload(io.BytesIO(b"hi"), progress=False)
    assert sent.complete
    first = (
        await user.tasks.submit(
            image="base", command=["train"], labels={"run": "1"}, input_sha256=sent.sha256
        )
    ).tasks[0]
    after = await user.tasks.submit(
        image="base",
        script="echo",
        name="after",
        depends_on=[Dependency(task_id=first.id)],
        array=TaskArray(size=2, max_parallel=1),
    )
    assert (first.status, after.count) == ("assigned", 2)
    assert [one.id async for one in await user.tasks.list(labels=["run=1"])] == [first.id]

    claim = wire.TaskClaim(epoch=agent.epoch, request_id="request-1", max_attempts=4)
    (attempt,) = (await host.claim_tasks(claim)).attempts
    write = wire.AttemptWrite(epoch=agent.epoch)
    assert not (await host.accept_attempt(attempt.id, write)).stop
    assert attempt.input == wire.AttemptInput(sha256=_SHA256, size_bytes=2)
    assert await host.read_attempt_input(attempt.id, epoch=agent.epoch, offset=1) == b"i"
    await host.start_attempt(attempt.id, wire.AttemptStart(epoch=agent.epoch))
    await host.report_progress(
        attempt.id, wire.AttemptProgress(epoch=agent.epoch, progress=0.5, message="half")
    )
    assert (await user.tasks.get(first.id)).progress == 0.5
    piece = wire.AttemptLogs(epoch=agent.epoch, sequence=0, data=base64.b64encode(b"epoch 1\n").decode())
    assert [(await host.append_logs(attempt.id, piece)).next_sequence for _ in range(2)] == [1, 1]
    part = await user.tasks.logs(first.id, offset=6)
    assert (part.text, part.next_offset, part.complete) == ("1\n", 8, False)
    assert (await user.tasks.logs(first.id, attempt=1, rank=0, limit=5, tail_bytes=8)).text == "epoch"
    assert (await user.tasks.stop(first.id)).stop_requested
    assert (await host.renew_attempt(attempt.id, wire.AttemptRenewal(epoch=agent.epoch))).stop
    left = {"epoch": agent.epoch, "path": "out/model.bin", "size_bytes": 2, "sha256": _SHA256}
    assert not (await host.upload_artifact(attempt.id, **left, offset=0, data=b"h")).complete
    assert (await host.upload_artifact(attempt.id, **left, offset=1, data=b"i")).complete
    (file,) = (await user.tasks.artifacts(first.id, attempt=1, rank=0, path="out/model.bin")).items
    with tempfile.TemporaryDirectory() as folder:
        assert (await user.tasks.download_artifact(file, folder, progress=False)).read_bytes() == b"hi"
    await host.complete_attempt(
        attempt.id,
        wire.AttemptResult(
            epoch=agent.epoch, status=wire.AttemptOutcome.CANCELLED, exit_code=143, reason="cancelled"
        ),
    )
    await host.release_attempt(attempt.id, write)
    assert (await user.tasks.get(first.id)).status == "cancelled"
    assert [one async for one in user.tasks.follow_logs(first.id)] == ["epoch 1\n"]
    assert (await user.tasks.wait(first.id, progress=False)).status == "cancelled"
    (tried,) = (await user.tasks.attempts(first.id)).items
    assert (tried.exit_code, tried.released_at is None) == (143, False)
    assert (await user.tasks.retry(first.id)).status == "pending"
    await user.tasks.stop(first.id)
    assert after.array_id is not None
    assert (await user.task_arrays.get(after.array_id)).size == 2
    stopped = await user.task_arrays.stop(after.array_id)
    assert stopped.counts == {"cancelled": 2}

    spec = TaskSpec(image="base", command=["train"])
    schedule = await user.task_schedules.create(name="nightly", cron="30 2 * * *", task=spec)
    assert [one.name async for one in await user.task_schedules.list()] == ["nightly"]
    assert (await user.task_schedules.update(schedule.id, overlap="allow")).overlap is Overlap.ALLOW
    paused = await user.task_schedules.update(schedule.id, enabled=False)
    assert paused.next_at is None
    assert (await user.task_schedules.get(schedule.id)).enabled is False
    await user.task_schedules.delete(schedule.id)
