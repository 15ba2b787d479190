"""A server that speaks the agent protocol as a test scripts it, in this process and over real HTTP."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from scripted_attempts import ScriptedAttempts

from remotegpu.types.agent import (
    DesiredWorkloads,
    Enroll,
    Enrolled,
    Heartbeat,
    HeartbeatReply,
    ImageSaveReport,
    ImageSaveRequest,
    LogAnswer,
    LogRequest,
    Observation,
    Session,
    SessionCreate,
    Workload,
)

T = TypeVar("T")

HOST_ID = "host-under-test"
CREDENTIAL = "rga_test_credential"


class ScriptedServer:
    """Records what an agent says; answers with the desired set that the test chose."""

    def __init__(self, *, host_id: str = HOST_ID, pace_s: float = 0.2) -> None:
        self.host_id = host_id
        self.pace_s = pace_s
        self.changed = threading.Condition()  # reentrant: probes may wait themselves
        self.sessions: list[SessionCreate] = []
        self.heartbeats: list[Heartbeat] = []
        self.observations: list[Observation] = []
        self.save_reports: list[tuple[str, ImageSaveReport]] = []
        self.log_answers: dict[str, LogAnswer] = {}
        self.failures: dict[str, list[tuple[int, str]]] = {}
        """Part of a path -> answers (status, code) to give instead, one for each request."""
        self._workloads: list[Workload] = []
        self._log_requests: list[LogRequest] = []
        self._saves: list[ImageSaveRequest] = []
        self._revision = 1
        self.attempts = ScriptedAttempts(self)
        self.closing = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def epoch(self) -> int:
        return len(self.sessions)

    @property
    def last_heartbeat(self) -> Heartbeat:
        """Waits for the first."""
        self.until("a heartbeat", lambda: self.heartbeats)
        return self.heartbeats[-1]

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.bump()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def bump(self) -> None:
        """Something that hosts are told has changed."""
        self._revision += 1
        self.changed.notify_all()

    def desire(
        self,
        *workloads: Workload,
        logs: tuple[LogRequest, ...] = (),
        saves: tuple[ImageSaveRequest, ...] = (),
    ) -> None:
        with self.changed:
            self._workloads, self._log_requests, self._saves = list(workloads), list(logs), list(saves)
            self._revision += 1
            self.changed.notify_all()

    def fail(self, path_part: str, *answers: tuple[int, str]) -> None:
        with self.changed:
            self.failures.setdefault(path_part, []).extend(answers)

    def until(self, what: str, probe: Callable[[], T | None], *, timeout_s: float = 20) -> T:
        """The first true answer of `probe`, asked again after every message of the agent."""
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while not (answer := probe()):
                left = deadline - time.monotonic()
                assert left > 0, f"not within {timeout_s} s: {what}; observed {self.story()}"
                self.changed.wait(min(left, 0.5))
            return answer

    def until_observed(self, workload_id: str, observed: str, *, timeout_s: float = 20) -> Observation:
        def probe() -> Observation | None:
            for seen in reversed(self.observations):
                if seen.workload_id == workload_id:
                    return seen if seen.observed == observed else None
            return None

        return self.until(f"{workload_id} is {observed}", probe, timeout_s=timeout_s)

    def until_saved(self, save_id: str, *, timeout_s: float = 60) -> ImageSaveReport:
        """The report that ends a save."""

        def probe() -> ImageSaveReport | None:
            ends = [one for key, one in self.save_reports if key == save_id and (one.image_id or one.reason)]
            return ends[0] if ends else None

        return self.until(f"{save_id} is over", probe, timeout_s=timeout_s)

    def story(self) -> list[str]:
        return [f"{it.workload_id}/{it.generation} {it.observed} {it.message}" for it in self.observations]

    # What follows runs in the threads of the HTTP server.

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        with self.changed:
            for part, answers in self.failures.items():
                if part in path and answers:
                    status, code = answers.pop(0)
                    self.changed.notify_all()
                    return status, {
                        "error": code, "detail": code, "hint": None, "request_id": "r", "data": {},
                    }  # fmt: skip
            try:
                return self._answer(method, path, query, body)
            finally:
                self.changed.notify_all()

    def _answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path == "/v1/agent/enroll":
            Enroll.model_validate_json(body)
            return 201, Enrolled(host_id=self.host_id, host_name="test", credential=CREDENTIAL)
        if path == "/v1/agent/sessions":
            self.sessions.append(SessionCreate.model_validate_json(body))
            return 201, Session(host_id=self.host_id, epoch=self.epoch, next_in_s=self.pace_s)
        if path == "/v1/agent/heartbeat":
            heartbeat = Heartbeat.model_validate_json(body)
            if heartbeat.epoch != self.epoch:
                return _stale()
            self.heartbeats.append(heartbeat)
            return 200, HeartbeatReply(next_in_s=self.pace_s, revision=self._revision)
        if path == "/v1/agent/workloads":
            return self._long_poll(query)
        if match := re.fullmatch(r"/v1/agent/workloads/([^/]+)/observed", path):
            observation = Observation.model_validate_json(body)
            assert observation.workload_id == match[1]
            if observation.epoch != self.epoch:
                return _stale()
            self.observations.append(observation)
            return 204, None
        if match := re.fullmatch(r"/v1/agent/log-requests/([^/]+)", path):
            self.log_answers[match[1]] = LogAnswer.model_validate_json(body)
            return 204, None
        if match := re.fullmatch(r"/v1/agent/image-saves/([^/]+)", path):
            self.save_reports.append((match[1], ImageSaveReport.model_validate_json(body)))
            return 204, None
        if path.startswith(("/v1/agent/tasks/", "/v1/agent/attempts/")):
            of_file = path.endswith(("/artifacts", "/input"))
            epoch = int(query["epoch"]) if of_file else json.loads(body)["epoch"]
            if epoch != self.epoch:
                return _stale()
            if path.endswith("/input"):
                return self.attempts.input_part(path, int(query["offset"]))
            return self.attempts.answer(path, body)
        return 404, {"error": "not_found", "detail": path, "hint": None, "request_id": "r", "data": {}}

    def _long_poll(self, query: dict[str, str]) -> tuple[int, Any]:
        if int(query["epoch"]) != self.epoch:
            return _stale()
        deadline = time.monotonic() + float(query["wait_s"])
        while query.get("since") == str(self._revision) and (left := deadline - time.monotonic()) > 0:
            self.changed.wait(left)
        if int(query["epoch"]) != self.epoch:
            return _stale()
        return 200, DesiredWorkloads(
            revision=self._revision,
            attempts=self.attempts.granted(),
            claimable=0,
            workloads=self._workloads,
            log_requests=self._log_requests,
            gpu_checks=[],
            volume_removals=[],
            volume_measurements=[],
            image_saves=self._saves,
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                path, _, query = self.path.partition("?")
                pairs = dict(pair.split("=", 1) for pair in query.split("&") if "=" in pair)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = server.answer(self.command, path, pairs, body)
                if answer is None:
                    text = b""
                elif isinstance(answer, bytes):
                    text = answer
                elif isinstance(answer, dict):
                    text = json.dumps(answer).encode()
                else:
                    text = answer.model_dump_json().encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except OSError:
                    self.close_connection = True  # the agent was killed meanwhile

            do_GET = do_POST = do_PUT = _serve  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Quiet: tests read what was recorded."""

        return Handler


def _stale() -> tuple[int, dict[str, Any]]:
    return 409, {"error": "epoch_stale", "detail": "stale", "hint": None, "request_id": "r", "data": {}}
