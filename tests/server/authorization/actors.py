"""The columns of the matrix: who asks, and the rows they ask about."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
from fastapi import FastAPI

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server.db import tables
from remotegpu_server.deps import ON_BEHALF_OF
from remotegpu_server.testing import Actors
from remotegpu_server.tokens import service as tokens

ACTORS: dict[str, str] = {
    "anonymous": "no token",
    "expired": "an expired token of `self`",
    "self": "a member of the customer `default`; the rows are this user's",
    "ws_admin": "a colleague of `self`, admin of the workspace in which the rows live",
    "ws_member": "the same, member of it",
    "ws_viewer": "the same, viewer of it",
    "colleague": "another member of the customer, who is in no common workspace",
    "owner": "an owner of the customer",
    "foreign_member": "a member of another customer",
    "foreign_owner": "an owner of another customer",
    "admin": "a platform admin",
    "agent": "the agent of the host on which the environment is placed",
    "foreign_agent": "the agent of another host",
    "workload": "the notebook of the environment",
    "foreign_workload": "the notebook of an environment of another customer",
    "hub": "the hub's service token, acting for nobody",
    "hub_self": "the hub acting for `self`",
}


@dataclass
class World:
    """Everybody with headers, and a value for every path parameter."""

    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """By name of the path parameter; ``{id}`` of a route with another meaning: by ``<path> <name>``."""


async def build(app: FastAPI, actors: Actors) -> World:
    """People, hosts and one environment of ``self``; a new noun adds its row and id here."""
    world = World(headers={"anonymous": {}})
    people = {
        "self": await actors.user("self"),
        "ws_admin": await actors.user("ws_admin"),
        "ws_member": await actors.user("ws_member"),
        "ws_viewer": await actors.user("ws_viewer"),
        "colleague": await actors.user("colleague"),
        "owner": await actors.user("owner", role="owner"),
        "foreign_member": await actors.user("foreign_member", customer="physics"),
        "foreign_owner": await actors.user("foreign_owner", customer="physics", role="owner"),
        "admin": await actors.admin("admin"),
    }
    world.headers |= {name: person.headers for name, person in people.items()}
    own, foreign = people["self"], people["foreign_member"]
    async with app.state.database.sessions() as db:
        workspace = await _team(db, owner=own.id, customer_id=own.customer_id)
        for role in ("admin", "member", "viewer"):
            await _join(db, workspace, people[f"ws_{role}"].id, role)
        elsewhere = await _team(db, owner=foreign.id, customer_id=foreign.customer_id)
        for name in ("agent", "foreign_agent"):
            host = tables.new_id("host")
            await db.execute(sa.insert(tables.Host).values(id=host, name=name.replace("_", "-")))
            world.headers[name] = await _token(db, TokenKind.AGENT, Scope.AGENT, host_id=host)
            world.ids.setdefault("host", host)
        image = tables.new_id("img")
        await db.execute(
            sa.insert(tables.Image).values(
                id=image,
                name="base",
                reference="example.org/base:1",
                display_name="",
                description="",
                runtime="docker",
            )
        )
        quota_request = await _quota_request(db, own.id, own.customer_id)
        mine = await _environment(db, own.id, own.customer_id, workspace, image)
        task = await _task(db, own.id, own.customer_id, workspace, image)
        array = await _array_of(db, task)
        schedule = await _schedule(db, own.id, own.customer_id, workspace)
        theirs = await _environment(db, foreign.id, foreign.customer_id, elsewhere, image)
        for name, environment, user in (("workload", mine, own), ("foreign_workload", theirs, foreign)):
            world.headers[name] = await _token(
                db, TokenKind.WORKLOAD, Scope.NOTEBOOK, environment_id=environment, user_id=user.id
            )
        world.headers["expired"] = await _token(
            db, TokenKind.USER, Scope.ALL, user_id=own.id, expires_in_s=-1
        )
        world.headers["hub"] = await _token(db, TokenKind.SERVICE, Scope.ACT_AS, Scope.METRICS, name="hub")
        world.headers["hub_self"] = world.headers["hub"] | {ON_BEHALF_OF: "self"}
        token_id = await db.scalar(
            sa.select(tables.Token.id).where(tables.Token.user_id == own.id, tables.Token.name == "test")
        )
        gpu, dedication = tables.new_id("gpu"), tables.new_id("ded")
        await db.execute(
            sa.insert(tables.Gpu).values(
                id=gpu,
                host_id=world.ids["host"],
                uuid="GPU-matrix",
                index=0,
                model="A100-80GB",
                product="A100",
                memory_total_bytes=1,
                simulated=True,
            )
        )
        await db.execute(
            sa.insert(tables.Dedication).values(
                id=dedication,
                host_id=world.ids["host"],
                customer_id=own.customer_id,
                starts_at=sa.text("now() + interval '1 day'"),
                ends_at=sa.text("now() + interval '2 days'"),
                created_by="admin",
            )
        )
        reservation = tables.new_id("rsv")
        await db.execute(
            sa.insert(tables.Reservation).values(
                id=reservation,
                name="course",
                customer_id=own.customer_id,
                workspace_id=workspace,
                gpus=1,
                starts_at=sa.text("now() + interval '1 day'"),
                ends_at=sa.text("now() + interval '2 days'"),
                created_by=own.id,
            )
        )
        ssh_key = tables.new_id("key")
        await db.execute(
            sa.insert(tables.SshKey).values(
                id=ssh_key,
                user_id=own.id,
                name="laptop",
                key_type="ssh-ed25519",
                public_key="ssh-ed25519 AAAA",
                fingerprint="SHA256:none",
            )
        )
        volume = tables.new_id("vol")
        await db.execute(
            sa.insert(tables.Volume).values(id=volume, owner_id=own.id, host_id=world.ids["host"])
        )
        save = tables.new_id("sav")
        await db.execute(
            sa.insert(tables.ImageSave).values(
                id=save,
                environment_id=mine,
                generation=1,
                host_id=world.ids["host"],
                workspace_id=workspace,
                requested_by=own.id,
                image_name="saved",
                display_name="",
                description="",
                base_image_id=image,
            )
        )
        notification = tables.new_id("ntf")
        await db.execute(
            sa.insert(tables.Notification).values(
                id=notification,
                user_id=own.id,
                kind="test.told",
                level="info",
                message="Told.",
                subject_type="test",
                subject_id="test",
            )
        )
        webhook = tables.new_id("whk")
        hook = {"id": webhook, "owner_id": own.id, "url": "https://example.org/x", "secret": b"sealed"}
        await db.execute(sa.insert(tables.Webhook).values(**hook, events=["job.failed"]))
        silence = tables.new_id("sil")
        quiet = {"id": silence, "until": sa.func.now() + timedelta(days=1), "created_by": "admin"}
        await db.execute(sa.insert(tables.AlertSilence).values(quiet))
        await db.commit()
    world.ids |= {
        "alert_id": await actors.alert(),
        "rule": "agent-offline",
        "silence_id": silence,
        "webhook_id": webhook,
        "notification_id": notification,
        "customer": own.customer_id,
        "user": own.id,
        "workspace": workspace,
        "image": image,
        "environment_id": mine,
        "workload_id": mine,
        "task_id": task,
        "artifact_id": "art-none",
        "array_id": array,
        "schedule_id": schedule,
        "attempt_id": "att-none",
        "sha256": "0" * 64,
        "token_id": token_id or "",
        "subject": "user",
        "subject_id": own.id,
        "policy": "basic",
        "quota_request": quota_request,
        "key": "system.name",
        "kind": "environment",
        "request_id": "log-none",
        "check_id": "chk-none",
        "removal_id": "rmv-none",
        "save_id": "sav-none",
        "gpu": gpu,
        "dedication": dedication,
        "key_id": ssh_key,
        "volume_id": volume,
        "reservation_id": reservation,
        "/v1/image-saves/{save_id}:cancel save_id": save,
        "/v1/workspaces/{workspace}/members/{user} user": people["ws_viewer"].id,
    }
    assert set(world.headers) == set(ACTORS)
    return world


async def _team(db: sa.ext.asyncio.AsyncSession, *, owner: str, customer_id: str) -> str:
    workspace = tables.new_id("wsp")
    await db.execute(
        sa.insert(tables.Workspace).values(
            id=workspace, customer_id=customer_id, name=f"Team of {owner}", kind="team"
        )
    )
    await _join(db, workspace, owner, "owner")
    return workspace


async def _join(db: sa.ext.asyncio.AsyncSession, workspace: str, user: str, role: str) -> None:
    await db.execute(
        sa.insert(tables.WorkspaceMember).values(workspace_id=workspace, user_id=user, role=role)
    )


async def _environment(
    db: sa.ext.asyncio.AsyncSession, owner: str, customer_id: str, workspace: str, image: str
) -> str:
    """A stopped one: everything may be asked of it, and nothing waits for a host."""
    environment = tables.new_id("env")
    await db.execute(
        sa.insert(tables.Environment).values(
            id=environment,
            owner_id=owner,
            customer_id=customer_id,
            workspace_id=workspace,
            name="work",
            display_name="",
            image_id=image,
            gpus=0,
            cpus=1,
            memory_bytes=2**30,
            desired="stopped",
            status="stopped",
            reason="requested",
            message="",
        )
    )
    return environment


async def _task(
    db: sa.ext.asyncio.AsyncSession, owner: str, customer_id: str, workspace: str, image: str
) -> str:
    """One that has ended: it may be run again, and stopping it changes nothing."""
    task = tables.new_id("tsk")
    await db.execute(
        sa.insert(tables.Task).values(
            id=task,
            owner_id=owner,
            customer_id=customer_id,
            workspace_id=workspace,
            name="train",
            image_id=image,
            command=["train"],
            gpus=0,
            cpus=1,
            memory_bytes=2**30,
            max_lifetime_s=60,
            stop_grace_s=30,
            max_retries=0,
            retry_delay_s=10,
            retry_on=["lost"],
            status="cancelled",
            reason="cancelled",
            message="",
            finished_at=sa.func.now(),
        )
    )
    return task


async def _array_of(db: sa.ext.asyncio.AsyncSession, task: str) -> str:
    array, row = tables.new_id("arr"), tables.Task
    await db.execute(sa.insert(tables.TaskArray).values(id=array, size=1))
    await db.execute(sa.update(row).where(row.id == task).values(array_id=array, array_index=0))
    return array


async def _schedule(db: sa.ext.asyncio.AsyncSession, owner: str, customer_id: str, workspace: str) -> str:
    schedule = tables.new_id("sch")
    await db.execute(
        sa.insert(tables.TaskSchedule).values(
            id=schedule,
            owner_id=owner,
            customer_id=customer_id,
            workspace_id=workspace,
            name="hourly",
            cron="0 * * * *",
            time_zone="UTC",
            overlap="skip",
            spec={"image": "base", "command": ["train"]},
        )
    )
    return schedule


async def _quota_request(db: sa.ext.asyncio.AsyncSession, user: str, customer_id: str) -> str:
    quota_request = tables.new_id("qrq")
    await db.execute(
        sa.insert(tables.QuotaRequest).values(
            id=quota_request,
            subject_type="user",
            subject_id=user,
            subject_name="self",
            customer_id=customer_id,
            resource="gpus",
            amount=3,
            why="work",
            limit_before=1,
            requested_by=user,
        )
    )
    return quota_request


async def _token(
    db: sa.ext.asyncio.AsyncSession, kind: TokenKind, *scopes: Scope, **bound: object
) -> dict[str, str]:
    minted = await tokens.mint(db, kind=kind, scopes=scopes, **bound)  # type: ignore[arg-type]
    return {"Authorization": f"Bearer {minted.secret}"}
