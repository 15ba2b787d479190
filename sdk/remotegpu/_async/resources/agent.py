"""The agent protocol: what a host's agent says and asks. Wire types go in and come out."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import decode, segment
from remotegpu.types.agent import (
    ArtifactReply,
    AttemptLease,
    AttemptLogs,
    AttemptLogsReply,
    AttemptProgress,
    AttemptRenewal,
    AttemptResult,
    AttemptStart,
    AttemptWrite,
    ClaimedAttempts,
    DesiredWorkloads,
    Enroll,
    Enrolled,
    GpuCheckAnswer,
    Heartbeat,
    HeartbeatReply,
    ImageSaveReport,
    LogAnswer,
    Observation,
    Session,
    SessionCreate,
    TaskClaim,
    VolumeRemovalAnswer,
    VolumeSize,
)


class AsyncAgent(AsyncResource):
    """The agent protocol. Every call but :meth:`enroll` needs the host's credential as token."""

    async def enroll(self, body: Enroll) -> Enrolled:
        """Join a host; the client's token is the one-time enrolment token."""
        return await self._transport.call(Enrolled, "POST", "/v1/agent/enroll", body=body)

    async def create_session(self, body: SessionCreate) -> Session:
        """Register a new lifetime of the agent; older sessions become stale."""
        return await self._transport.call(Session, "POST", "/v1/agent/sessions", body=body)

    async def heartbeat(self, body: Heartbeat) -> HeartbeatReply:
        """Say that the agent is alive, and what it measured."""
        return await self._transport.call(HeartbeatReply, "POST", "/v1/agent/heartbeat", body=body)

    async def workloads(
        self, *, epoch: int, since: int | None = None, wait_s: float = 25.0
    ) -> DesiredWorkloads:
        """The full desired set; the server holds the request until the revision differs from `since`."""
        response = await self._transport.send(
            "GET",
            "/v1/agent/workloads",
            params={"epoch": epoch, "since": since, "wait_s": wait_s},
            read_timeout_s=wait_s + self._transport.timeout_s,
        )
        return decode(DesiredWorkloads, response)

    async def observe(self, workload_id: str, body: Observation) -> None:
        """Report what became of one workload."""
        await self._transport.send("PUT", f"/v1/agent/workloads/{segment(workload_id)}/observed", body=body)

    async def answer_logs(self, request_id: str, body: LogAnswer) -> None:
        """Hand in the output that somebody asked for."""
        await self._transport.send("PUT", f"/v1/agent/log-requests/{segment(request_id)}", body=body)

    async def answer_gpu_check(self, check_id: str, body: GpuCheckAnswer) -> None:
        """Hand in the result of a self-test."""
        await self._transport.send("PUT", f"/v1/agent/gpu-checks/{segment(check_id)}", body=body)

    async def report_image_save(self, save_id: str, body: ImageSaveReport) -> None:
        """Say how far a save is, or how it ended. `StateConflict`: the server has given it up."""
        await self._transport.send("PUT", f"/v1/agent/image-saves/{segment(save_id)}", body=body)

    async def answer_volume_removal(self, removal_id: str, body: VolumeRemovalAnswer) -> None:
        """Say whether a home is gone from this host's disk."""
        path = f"/v1/agent/volume-removals/{segment(removal_id)}"
        await self._transport.send("PUT", path, body=body)

    async def report_volume_size(self, volume_id: str, body: VolumeSize) -> None:
        """Say how large a home is that the server asked about."""
        await self._transport.send("PUT", f"/v1/agent/volumes/{segment(volume_id)}/size", body=body)

    async def claim_tasks(self, body: TaskClaim) -> ClaimedAttempts:
        """Ask for attempts that were placed on this host; held up to the body's `wait_s`."""
        response = await self._transport.send(
            "POST",
            "/v1/agent/tasks/claim",
            body=body,
            read_timeout_s=body.wait_s + self._transport.timeout_s,
        )
        return decode(ClaimedAttempts, response)

    async def accept_attempt(self, attempt_id: str, body: AttemptWrite) -> AttemptLease:
        """Confirm an attempt, before anything of it is started."""
        return await self._transport.call(
            AttemptLease, "POST", self._attempt(attempt_id, "accept"), body=body
        )

    async def start_attempt(self, attempt_id: str, body: AttemptStart) -> None:
        """Say that its process runs."""
        await self._transport.send("POST", self._attempt(attempt_id, "start"), body=body)

    async def renew_attempt(self, attempt_id: str, body: AttemptRenewal) -> AttemptLease:
        """Say that it is still worked on. `AttemptFinal`, `LeaseExpired`: end it."""
        path = self._attempt(attempt_id, "renew")
        return await self._transport.call(AttemptLease, "POST", path, body=body)

    async def report_progress(self, attempt_id: str, body: AttemptProgress) -> None:
        """Hand on what the task said of itself."""
        await self._transport.send("POST", self._attempt(attempt_id, "progress"), body=body)

    async def append_logs(self, attempt_id: str, body: AttemptLogs) -> AttemptLogsReply:
        """Hand in the next piece of output. Sent again, it is stored once: so it is repeated by itself."""
        response = await self._transport.send(
            "POST", self._attempt(attempt_id, "logs"), body=body, repeatable=True
        )
        return decode(AttemptLogsReply, response)

    async def read_attempt_input(self, attempt_id: str, *, epoch: int, offset: int) -> bytes:
        """What follows at `offset` of the file that an attempt reads, at most 4 MiB; nothing at the end."""
        response = await self._transport.send(
            "GET",
            self._attempt(attempt_id, "input"),
            params={"epoch": epoch, "offset": offset},
            headers={"Accept": "application/octet-stream"},
        )
        return response.content

    async def upload_artifact(
        self,
        attempt_id: str,
        *,
        epoch: int,
        path: str,
        size_bytes: int,
        sha256: str,
        offset: int,
        data: bytes,
    ) -> ArtifactReply:
        """Hand in the next piece of a file, at most 1 MiB. `StateConflict`: send it from the start, once."""
        response = await self._transport.send(
            "PUT",
            f"/v1/agent/attempts/{segment(attempt_id)}/artifacts",
            params={
                "epoch": epoch,
                "path": path,
                "size_bytes": size_bytes,
                "sha256": sha256,
                "offset": offset,
            },
            body=data,
            headers={"Content-Type": "application/octet-stream"},
        )
        return decode(ArtifactReply, response)

    async def complete_attempt(self, attempt_id: str, body: AttemptResult) -> None:
        """Say how it ended."""
        await self._transport.send("POST", self._attempt(attempt_id, "complete"), body=body)

    async def release_attempt(self, attempt_id: str, body: AttemptWrite) -> None:
        """Say that nothing of it is left on the host."""
        await self._transport.send("POST", self._attempt(attempt_id, "release"), body=body)

    def _attempt(self, attempt_id: str, verb: str) -> str:
        return f"/v1/agent/attempts/{segment(attempt_id)}/{verb}"
