"""C7: who is out is out at once on every server, and another's things cannot be named.

The whole matrix, every route by 17 kinds of callers, is in ``tests/server/authorization``; C7c asks its
foreign column again over real HTTP, with rows that were made through the API.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from acceptance.site import PASSWORD, Person, SdkAgent, Site, at_once

from remotegpu.errors import (
    AccountSuspended,
    ApiError,
    AttemptMismatch,
    EpochStale,
    Forbidden,
    InvalidCredentials,
    NotFound,
    StateConflict,
    Unauthorized,
)
from remotegpu.types import agent as wire
from remotegpu.types.tasks import TaskArray, TaskSpec
from remotegpu_server.openapi import EXAMPLES

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from authorization.table import ROUTES

NEW_PASSWORD = "staple correct horse"


def log_out(site: Site, ada: Person) -> None:
    ada.client.auth.logout()


def suspend(site: Site, ada: Person) -> None:
    site.admins[1].users.suspend(ada.name)


def change_password(site: Site, ada: Person) -> None:
    """In another session: the one that changes it stays."""
    other = site.sign_in(ada.name)
    other.client.me.change_password(current_password=PASSWORD, new_password=NEW_PASSWORD)
    assert other.clients[1].me.get().user is not None


@pytest.mark.parametrize("way", [log_out, suspend, change_password])
def test_c7a_next_call_and_next_new_token_are_refused_on_both_servers(
    site: Site, way: Callable[[Site, Person], None]
) -> None:
    """A session token is not refreshed: another one is asked for, with it or with the password."""
    ada = site.user()
    longer = ada.client.tokens.create(name="script").secret
    for client in ada.clients:
        assert client.me.get().user is not None
    way(site, ada)
    tokens = [ada.token] if way is log_out else [ada.token, longer]
    for token in tokens:
        for server in (0, 1):
            client = site.client(token, server)
            with pytest.raises((Unauthorized, AccountSuspended)):
                client.me.get()
            with pytest.raises((Unauthorized, AccountSuspended)):
                client.tokens.create(name="refresh")
    if way is not log_out:
        with pytest.raises((InvalidCredentials, AccountSuspended)):
            site.sign_in(ada.name)


def test_c7b_password_reset_answers_no_token_whoever_it_is_for(site: Site) -> None:
    ada = site.user()
    for server in site.servers:
        answers = [
            httpx.post(f"{server.url}/v1/auth/password-reset", json={"user": name})
            for name in (ada.name, "nobody-of-that-name", "nobody@example.org")
        ]
        assert {(one.status_code, one.content) for one in answers} == {(204, b"")}
        assert not [one for one in answers if "rgp_" in str(one.headers)]
    assert ada.client.me.get().user is not None, "asking changes nothing"


def test_c7b_token_of_one_agent_changes_nothing_of_another_machine_on_any_agent_route(site: Site) -> None:
    ada, a, b = site.user(site.customer()), SdkAgent(site), SdkAgent(site)
    made = ada.client.environments.create(
        name="c7b", image="base", gpus=1, memory_bytes=2**28, host_labels={"only": b.name}
    )
    b.obey()
    before = _machine(site, b, made.id)
    as_a = a.client.agent
    asked: set[str] = set()

    def refused(route: str, kind: type[ApiError], call: Callable[[], object]) -> None:
        asked.add(route)
        with pytest.raises(kind):
            call()
        assert _machine(site, b, made.id) == before, route

    body = wire.Enroll(hostname=b.name, machine_id=b.name, agent_version="0")
    refused("POST /v1/agent/enroll", Forbidden, lambda: as_a.enroll(body))
    # These name no host, the credential does: what can be tried is to claim what the other one has.
    refused("POST /v1/agent/sessions", StateConflict, lambda: as_a.create_session(a.session(b.gpus)))
    refused("GET /v1/agent/workloads", EpochStale, lambda: as_a.workloads(epoch=a.epoch + 1, wait_s=0))
    absent = a.observation(made.id, made.generation, "absent")
    refused(
        "PUT /v1/agent/workloads/{workload_id}/observed", Forbidden, lambda: as_a.observe(made.id, absent)
    )
    asked.add("POST /v1/agent/heartbeat")
    sick = wire.HeartbeatGpu.model_validate(
        {"uuid": b.gpus[0], "metrics": {}, "unhealthy_reason": "XID 79: it is not mine"}
    )
    seen = wire.ObservedWorkload(workload_id=made.id, generation=made.generation, observed="absent")
    as_a.heartbeat(a.heartbeat(gpus=[sick], observed=[seen]))
    assert _machine(site, b, made.id) == before, "what a heartbeat says of others is not listened to"
    assert made.id not in str(a.desired())

    (gpu,) = site.admin.gpus.list(host=b.name).items
    check = site.admin.gpus.check(gpu.id)
    answer = wire.GpuCheckAnswer(epoch=a.epoch, passed=False, detail="it is not mine")
    refused(
        "PUT /v1/agent/gpu-checks/{check_id}",
        (Forbidden, NotFound),  # type: ignore[arg-type]
        lambda: as_a.answer_gpu_check(check.id, answer),
    )
    assert [one.id for one in b.desired().gpu_checks] == [check.id], "it is still open"
    b.client.agent.answer_gpu_check(check.id, wire.GpuCheckAnswer(epoch=b.epoch, passed=True))

    # A save that is under way is in tests/server/test_image_saves.py.
    report = wire.ImageSaveReport(epoch=a.epoch, progress_bytes=0)
    refused(
        "PUT /v1/agent/image-saves/{save_id}",
        NotFound,
        lambda: as_a.report_image_save("sav-000000000000", report),
    )

    (home,) = ada.client.volumes.list().items
    size = wire.VolumeSize(epoch=a.epoch, size_bytes=2**50)
    refused(
        "PUT /v1/agent/volumes/{volume_id}/size", NotFound, lambda: as_a.report_volume_size(home.id, size)
    )
    assert ada.client.volumes.get(home.id).size_bytes != 2**50

    asked.add("PUT /v1/agent/log-requests/{request_id}")
    assert _logs_while_another_agent_answers(ada, a, b, made.id) == "the truth"

    _refused_about_attempts(ada, a, b, refused)

    ends = datetime.now(UTC) + timedelta(days=1)
    lent = site.admin.dedications
    customer = ada.client.me.get().user
    assert customer is not None
    dedication = lent.create(host=b.name, customer=customer.customer_id, ends_at=ends)
    lent.reclaim(dedication.id, reason="over", force=True)
    removal = _until_removal(b)
    asked.add("PUT /v1/agent/volume-removals/{removal_id}")
    with pytest.raises((Forbidden, NotFound)):
        as_a.answer_volume_removal(removal, wire.VolumeRemovalAnswer(epoch=a.epoch, removed=True))
    assert [one.id for one in b.desired().volume_removals] == [removal], "it is still asked for"
    b.obey()
    assert asked == {name for name in ROUTES if "/v1/agent/" in name}


def _refused_about_attempts(
    ada: Person,
    a: SdkAgent,
    b: SdkAgent,
    refused: Callable[[str, type[ApiError], Callable[[], object]], None],
) -> None:
    """One that ``b`` runs: ``a`` neither gets it nor writes a word about it."""
    task = ada.client.tasks.submit(
        image="base", command=["train"], cpus=0.1, memory_bytes=2**26, host_labels={"only": b.name}
    ).tasks[0]
    as_a, as_b = a.client.agent, b.client.agent

    def claim(agent: SdkAgent, epoch: int) -> list[wire.ClaimedAttempt]:
        body = wire.TaskClaim(epoch=epoch, request_id=f"claim-of-{agent.name}", max_attempts=9, wait_s=0)
        return agent.client.agent.claim_tasks(body).attempts

    assert claim(a, a.epoch) == [], "it waits for another host"
    refused("POST /v1/agent/tasks/claim", EpochStale, lambda: claim(a, a.epoch + 1))
    (attempt,) = _until(lambda: claim(b, b.epoch))
    write = wire.AttemptWrite(epoch=a.epoch)
    outcome = wire.AttemptOutcome
    done = wire.AttemptResult(epoch=a.epoch, status=outcome.FAILED, exit_code=1, reason="exit_code")
    part = wire.AttemptProgress(epoch=a.epoch, progress=1.0)
    lie = wire.AttemptLogs(epoch=a.epoch, sequence=0, data="bGll")
    calls: dict[str, Callable[[], object]] = {
        "accept": lambda: as_a.accept_attempt(attempt.id, write),
        "start": lambda: as_a.start_attempt(attempt.id, wire.AttemptStart(epoch=a.epoch)),
        "renew": lambda: as_a.renew_attempt(attempt.id, wire.AttemptRenewal(epoch=a.epoch)),
        "progress": lambda: as_a.report_progress(attempt.id, part),
        "complete": lambda: as_a.complete_attempt(attempt.id, done),
        "logs": lambda: as_a.append_logs(attempt.id, lie),
        "release": lambda: as_a.release_attempt(attempt.id, write),
    }
    for verb, call in calls.items():
        refused(f"POST /v1/agent/attempts/{{attempt_id}}/{verb}", AttemptMismatch, call)
    refused(
        "PUT /v1/agent/attempts/{attempt_id}/artifacts",
        AttemptMismatch,
        lambda: as_a.upload_artifact(
            attempt.id,
            epoch=a.epoch,
            path="lie",
            size_bytes=3,
            sha256=hashlib.sha256(b"lie").hexdigest(),
            offset=0,
            data=b"lie",
        ),
    )
    refused(
        "GET /v1/agent/attempts/{attempt_id}/input",
        AttemptMismatch,
        lambda: as_a.read_attempt_input(attempt.id, epoch=a.epoch, offset=0),
    )
    own = wire.AttemptWrite(epoch=b.epoch)
    as_b.accept_attempt(attempt.id, own)
    as_b.start_attempt(attempt.id, wire.AttemptStart(epoch=b.epoch))
    result = wire.AttemptResult(epoch=b.epoch, status=outcome.SUCCEEDED, exit_code=0, reason="succeeded")
    as_b.complete_attempt(attempt.id, result)
    as_b.release_attempt(attempt.id, own)
    assert ada.client.tasks.get(task.id).status == "succeeded"
    assert ada.client.tasks.logs(task.id).data == ""
    assert ada.client.tasks.artifacts(task.id).items == []


def _machine(site: Site, host: SdkAgent, environment_id: str) -> tuple[object, ...]:
    """What must not change."""
    found, environment = site.admins[1].hosts.get(host.name), site.admins[1].environments.get(environment_id)
    gpus = [(one.health, one.environment_id) for one in site.admins[1].gpus.list(host=host.name)]
    epoch = site.rows("SELECT epoch FROM hosts WHERE id = :id", id=host.host_id)
    return (
        found.connection, found.operational, found.health, found.hostname, epoch, gpus,
        environment.status, environment.generation, environment.address,
    )  # fmt: skip


def _logs_while_another_agent_answers(ada: Person, a: SdkAgent, b: SdkAgent, environment_id: str) -> str:
    def answer() -> str:
        request = _until(lambda: b.desired().log_requests)[0].id
        with pytest.raises((Forbidden, NotFound)):
            a.client.agent.answer_logs(request, wire.LogAnswer(epoch=a.epoch, text="a lie", truncated=False))
        b.client.agent.answer_logs(request, wire.LogAnswer(epoch=b.epoch, text="the truth", truncated=False))
        return ""

    said, refused = at_once([answer, lambda: ada.clients[1].environments.logs(environment_id).text])
    assert not refused
    return "".join(said)


def _until_removal(b: SdkAgent) -> str:
    """Its home is asked for once its environment has ended with proof."""

    def removals() -> list[wire.VolumeRemoval]:
        desired = b.desired()
        for one in desired.workloads:
            if one.desired != "running":
                b.client.agent.observe(one.id, b.observation(one.id, one.generation, "absent"))
        return desired.volume_removals

    return _until(removals)[0].id


def test_c7c_another_customers_things_cannot_be_read_named_or_changed(site: Site) -> None:
    ada, eve = site.user(site.customer(), role="owner", gpus=2), site.user(site.customer(), role="owner")
    ids = _things_of(site, ada)
    before = _seen(site, ada)
    asked = 0
    for server in site.servers:
        document = httpx.get(f"{server.url}/openapi.json").json()
        for path, operations in document["paths"].items():
            if "{" not in path:
                continue
            for method, operation in operations.items():
                name = f"{method.upper()} {path}"
                expected = ROUTES[name].expected()["foreign_owner"]
                if expected == "+":
                    assert name in EVERYBODYS, f"{name} lets a foreign owner in, and nobody says why"
                    continue
                answer = httpx.request(
                    method,
                    server.url + re.sub(r"{(\w+)}", lambda found: ids[found[1]], path),
                    headers={"Authorization": f"Bearer {eve.token}"},
                    params=dict(ROUTES[name].query),
                    json=_body(name, operation),
                )
                wanted = {"3": (403, "forbidden"), "4": (404, "not_found")}[expected]
                assert (answer.status_code, answer.json()["error"]) == wanted, f"{name}: {answer.text}"
                asked += 1
    assert asked > 100, "both servers, every route with an id"
    assert _seen(site, ada) == before
    ada.client.reservations.cancel(ids["reservation_id"])


EVERYBODYS = {
    "GET /v1/images/{image}": "the platform's; a customer's own are in tests/server/test_images.py",
    "PUT /v1/notification-preferences/{kind}": "the caller's own",
    "GET /v1/settings/{key}": "platform settings that everybody may read",
    "PUT /v1/task-inputs/{sha256}": "content of one's own: nobody's names anybody else's",
}


def _things_of(site: Site, ada: Person) -> dict[str, str]:
    """One of each noun that has an id, made through the API."""
    me = ada.client.me.get().user
    assert me is not None
    workspace = ada.client.workspaces.create(name="Vision").id
    environment = ada.client.environments.create(
        name="c7c", image="quick", gpus=1, workspace=workspace, cpus=0.1, memory_bytes=2**28
    )
    ada.client.environments.wait_ready(environment.id, timeout_s=60, progress=False)
    host = SdkAgent(site)
    starts = datetime.now(UTC) + timedelta(days=2)
    dedication = site.admin.dedications.create(
        host=host.name, customer=me.customer_id, starts_at=starts, ends_at=starts + timedelta(days=1)
    )
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0JLJiJQVYBYf4Ao0QWmPp1hGOZcwVdcpGWmnVJ5Rnm"
    request = ada.client.quota_requests.create(resource="gpus", amount=9, why="a deadline")
    reservation = ada.client.reservations.create(
        name="course", gpus=1, workspace=workspace, starts_at=starts, ends_at=starts + timedelta(hours=2)
    )
    schedule = ada.client.task_schedules.create(
        name="yearly", cron="0 0 29 2 *", task=TaskSpec(image="quick", command=["true"], workspace=workspace)
    )
    task = ada.client.tasks.submit(
        image="quick", command=["true"], workspace=workspace, cpus=0.1, start_at=starts
    ).tasks[0]
    return {
        "customer": me.customer_id,
        "user": me.id,
        "workspace": workspace,
        "task_id": task.id,
        "array_id": _array_of(ada, workspace),
        "schedule_id": schedule.id,
        "attempt_id": "att-000000000000",
        "artifact_id": "art-000000000000",
        "image": "quick",
        "environment_id": environment.id,
        "workload_id": environment.id,
        "host": host.name,
        "gpu": site.admin.gpus.list(host=host.name).items[0].id,
        "dedication": dedication.id,
        "key_id": ada.client.ssh_keys.create(name="laptop", public_key=key).id,
        "token_id": ada.client.tokens.create(name="script").token.id,
        "subject": "user",
        "subject_id": me.id,
        "policy": "basic",
        "quota_request": request.id,
        "reservation_id": reservation.id,
        "volume_id": ada.client.volumes.list().items[0].id,
        "key": "system.name",
        "notification_id": "ntf-000000000000",
        "kind": "environment",
        "alert_id": "alt-000000000000",
        "rule": "agent-offline",
        "silence_id": "sil-000000000000",
        "webhook_id": ada.client.webhooks.create(
            url="https://example.org/x", events=["job.failed"]
        ).webhook.id,
        "request_id": "log-000000000000",
        "check_id": "chk-000000000000",
        "removal_id": "rmv-000000000000",
        "save_id": "sav-000000000000",
    }


_GROWS = ("gpu_hours", "storage_bytes")
"""What is used of these goes on by itself."""


def _array_of(ada: Person, workspace: str) -> str:
    """Two that never start."""
    far = datetime.now(UTC) + timedelta(days=300)
    made = ada.client.tasks.submit(
        image="quick", command=["true"], workspace=workspace, start_at=far, array=TaskArray(size=2)
    )
    assert made.array_id is not None
    return made.array_id


def _seen(site: Site, ada: Person) -> dict[str, Any]:
    """Everything that a foreign hand could have changed, as its owner and an admin see it."""
    me = ada.client.me.get()
    assert me.user is not None
    lists = {
        "user": [me.user],
        "environments": ada.client.environments.list(),
        "tasks": ada.client.tasks.list(),
        "schedules": ada.client.task_schedules.list(),
        "workspaces": ada.client.workspaces.list(),
        "keys": ada.client.ssh_keys.list(),
        "requests": ada.client.quota_requests.list(),
        "dedications": ada.client.dedications.list(),
        "reservations": ada.client.reservations.list(),
        "quota": [one for one in ada.client.quotas.mine().lines if one.resource not in _GROWS],
        "customer": [site.admin.customers.get(me.user.customer_id)],
        "images": site.admin.images.list(),
        "settings": site.admin.settings.list().settings,
    }
    shown = {name: [json.loads(one.model_dump_json()) for one in rows] for name, rows in lists.items()}
    shown["volumes"] = sorted((one.id, one.status) for one in ada.client.volumes.list())
    shown["tokens"] = sorted(one.id for one in ada.client.tokens.list())
    return shown


def _body(name: str, operation: dict[str, Any]) -> object:
    if ROUTES[name].body is not None:
        return ROUTES[name].body
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = json.dumps(content)
    found = re.search(r"#/components/schemas/(\w+)", schema)
    return EXAMPLES.get(found[1]) if found else None


def _until(probe: Callable[[], Any]) -> Any:
    from hub.stack import until

    return until("the host is asked", probe)
