"""The attempt protocol as a test scripts it: leases, refusals and lost answers on demand."""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    ClaimedAttempt,
    ClaimedAttempts,
    GrantedAttempt,
    TaskClaim,
)

if TYPE_CHECKING:
    from scripted_server import ScriptedServer


@dataclass
class Told:
    """What the server knows of one attempt."""

    spec: ClaimedAttempt
    request_id: str | None = None
    accepted: int = 0
    started: int = 0
    where: str = ""
    """What its agent said of its place when it started."""
    renewed: int = 0
    ready: bool = False
    go: bool = True
    stop_reason: str | None = None
    pieces: list[bytes] = field(default_factory=list)
    truncated: bool = False
    said: list[tuple[float | None, str]] = field(default_factory=list)
    results: list[AttemptResult] = field(default_factory=list)
    """Each distinct one that was taken."""
    files: list[bytes] = field(default_factory=list)
    """First pieces of what it left in ``/output``."""
    released: bool = False
    refused: tuple[int, str] | None = None
    """Answer to every write but ``release``."""
    writes_after_refusal: list[str] = field(default_factory=list)
    pieces_at_end: int | None = None

    @property
    def result(self) -> AttemptResult | None:
        return self.results[-1] if self.results else None

    @property
    def output(self) -> bytes:
        return b"".join(self.pieces)


class ScriptedAttempts:
    """The part of the scripted server that hands out attempts."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self.told: dict[str, Told] = {}
        self.claims: list[TaskClaim] = []
        self.lease_s, self.renew_in_s, self.fence_s, self.fence_grace_s = 9.0, 2.0, 30.0, 1.0
        self.next_in_s = 0.0
        self.input = b""
        """What every attempt reads that has an input."""
        self.lose: dict[str, int] = {}
        """Verb -> how many of its answers are lost after they took effect."""
        self.wrong: list[str] = []
        """Breaches of the protocol."""

    def assign(self, *specs: ClaimedAttempt) -> None:
        with self._server.changed:
            for spec in specs:
                self.told[spec.id] = Told(spec)
            self._server.bump()

    def assign_quietly(self, spec: ClaimedAttempt) -> None:
        """A claim finds it, and no list of what may run is sent: nothing else makes the agent ask."""
        with self._server.changed:
            self.told[spec.id] = Told(spec)
            self._server.changed.notify_all()

    def stop(self, attempt_id: str, reason: str = "cancelled") -> None:
        with self._server.changed:
            self.told[attempt_id].stop_reason = reason
            self._server.bump()

    def refuse(self, attempt_id: str, status: int = 410, code: str = "lease_expired") -> None:
        """From now on, and out of the list of what may run."""
        with self._server.changed:
            self.told[attempt_id].refused = (status, code)
            self._server.bump()

    def granted(self) -> list[GrantedAttempt]:
        return [
            GrantedAttempt(id=key, stop=one.stop_reason is not None, stop_reason=one.stop_reason)
            for key, one in self.told.items()
            if one.request_id is not None and one.refused is None and not one.results and not one.released
        ]

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        answer = self._answer(path, body)
        verb = path.rpartition("/")[2]
        if self.lose.get(verb, 0) > 0:
            self.lose[verb] -= 1
            return _error(503, "unavailable")
        return answer

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/v1/agent/tasks/claim":
            return self._claim(TaskClaim.model_validate_json(body))
        match = re.fullmatch(r"/v1/agent/attempts/([^/]+)/([a-z]+)", path)
        assert match is not None, path
        told = self.told.get(match[1])
        if told is None:
            return _error(409, "attempt_mismatch")
        if told.refused is not None and match[2] != "release":
            told.writes_after_refusal.append(match[2])
            return _error(*told.refused)
        answer: tuple[int, Any] = getattr(self, f"_{match[2]}")(told, body)
        return answer

    def input_part(self, path: str, offset: int) -> tuple[int, Any]:
        """A few bytes of what it reads; refused and lost as any other call about it."""
        status, answer = self.answer(path, b"")
        return (200, self.input[offset : offset + 5]) if status == 200 else (status, answer)

    def _input(self, told: Told, body: bytes) -> tuple[int, Any]:
        return 200, None

    def _claim(self, claim: TaskClaim) -> tuple[int, Any]:
        self.claims.append(claim)
        deadline = time.monotonic() + claim.wait_s
        while True:
            again = [
                one for one in self.told.values() if one.request_id == claim.request_id and not one.accepted
            ]
            waiting = [one for one in self.told.values() if one.request_id is None]
            found = again or waiting[: claim.max_attempts]
            left = deadline - time.monotonic()
            if found or left <= 0 or self._server.closing:
                break
            self._server.changed.wait(left)
        for one in found:
            one.request_id = claim.request_id
        return 200, ClaimedAttempts(attempts=[one.spec for one in found], next_in_s=0.0)

    def _lease(self, told: Told) -> AttemptLease:
        return AttemptLease.model_validate(
            {
                "lease_s": self.lease_s,
                "renew_in_s": self.renew_in_s,
                "fence_s": self.fence_s,
                "fence_grace_s": self.fence_grace_s,
                "stop": told.stop_reason is not None,
                "stop_reason": told.stop_reason,
                "go": told.go,
            }
        )

    def _accept(self, told: Told, body: bytes) -> tuple[int, Any]:
        AttemptWrite.model_validate_json(body)
        told.accepted += 1
        return 200, self._lease(told)

    def _start(self, told: Told, body: bytes) -> tuple[int, Any]:
        told.where = AttemptStart.model_validate_json(body).detail
        if not told.accepted:
            self.wrong.append(f"{told.spec.id} started before it was accepted")
        told.started += 1
        return 204, None

    def _renew(self, told: Told, body: bytes) -> tuple[int, Any]:
        told.renewed += 1
        told.ready = AttemptRenewal.model_validate_json(body).ready
        return 200, self._lease(told)

    def _progress(self, told: Told, body: bytes) -> tuple[int, Any]:
        said = AttemptProgress.model_validate_json(body)
        told.said.append((said.progress, said.message))
        return 204, None

    def _logs(self, told: Told, body: bytes) -> tuple[int, Any]:
        logs = AttemptLogs.model_validate_json(body)
        data = base64.b64decode(logs.data)
        if logs.sequence < len(told.pieces):
            if told.pieces[logs.sequence] != data:
                self.wrong.append(f"{told.spec.id}: piece {logs.sequence} came again with other bytes")
        elif logs.sequence == len(told.pieces):
            told.pieces.append(data)
            told.truncated |= logs.truncated
        return 200, AttemptLogsReply(next_sequence=len(told.pieces), next_in_s=self.next_in_s)

    def _artifacts(self, told: Told, body: bytes) -> tuple[int, Any]:
        """Of any file: one piece, and it has all."""
        told.files.append(body)
        return 200, ArtifactReply(received_bytes=len(body), complete=True)

    def _complete(self, told: Told, body: bytes) -> tuple[int, Any]:
        result = AttemptResult.model_validate_json(body)
        told.pieces_at_end = len(told.pieces)
        if not told.results:
            told.results.append(result)
        elif told.results[0].model_copy(update={"epoch": result.epoch}) != result:
            self.wrong.append(f"{told.spec.id} completed twice, differently")
        return 204, None

    def _release(self, told: Told, body: bytes) -> tuple[int, Any]:
        told.released = True
        return 204, None


def _error(status: int, code: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": code, "detail": code, "hint": None, "request_id": "r", "data": {}}
