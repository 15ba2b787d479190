"""All tables. PostgreSQL 15 or newer; the invariants of the system are written here, not in the services.

Usage is always a SUM over live rows (``released_at IS NULL``): no counters. Times are the database's
``now()``. Ids are ``<prefix>-<random>`` made by :func:`new_id`; events have a position instead.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def new_id(prefix: str) -> str:
    """A new id such as ``env-k3v9x2m4qp7t``: 12 characters of 32, so 60 random bits."""
    return f"{prefix}-{''.join(secrets.choice(_ALPHABET) for _ in range(12))}"


class Xid8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id, read as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


class Base(DeclarativeBase):
    """Base of the tables; constraint names are fixed, because errors are recognised by them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        float: Double,
        bytes: LargeBinary,
    }


def _one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


_now = func.now()


class Customer(Base):
    """A tenant."""

    __tablename__ = "customers"
    __table_args__ = (_one_of("status", "active", "suspended"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="active")
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class User(Base):
    """A login. Names are stored in lower case, and compared so."""

    __tablename__ = "users"
    __table_args__ = (
        _one_of("role", "admin", "owner", "member"),
        _one_of("status", "active", "suspended"),
        CheckConstraint("username = lower(username)", name="username_lower"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]
    email: Mapped[str | None]
    role: Mapped[str] = mapped_column(server_default="member")
    status: Mapped[str] = mapped_column(server_default="active")
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"), index=True)
    password_hash: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class Token(Base):
    """A bearer token; only its SHA-256 is stored (256 random bits need no slow hash, ASVS 6.5.2)."""

    __tablename__ = "tokens"
    __table_args__ = (
        _one_of("kind", "user", "service", "agent", "workload", "enrollment"),
        CheckConstraint("(kind = 'user') <= (user_id IS NOT NULL)", name="user_owned"),
        CheckConstraint("(kind IN ('agent', 'enrollment')) <= (host_id IS NOT NULL)", name="host_bound"),
        CheckConstraint(
            "(kind = 'workload') <= (environment_id IS NOT NULL AND user_id IS NOT NULL)",
            name="workload_bound",
        ),
        Index("ix_tokens_live_user", "user_id", postgresql_where=text("revoked_at IS NULL")),
        Index("ix_tokens_environment", "environment_id", postgresql_where=text("environment_id IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """The accessor: stands in the secret, so a lookup needs no scan."""
    secret_hash: Mapped[bytes]
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(server_default="")
    scopes: Mapped[list[str]]
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    host_id: Mapped[str | None] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"), index=True)
    environment_id: Mapped[str | None] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]
    """Enrolment tokens are spent once."""


class LoginFailure(Base):
    """Failed sign-ins per account name and per client address, for the rate limit; swept when old."""

    __tablename__ = "login_failures"
    __table_args__ = (Index("ix_login_failures_subject_at", "subject", "at"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    subject: Mapped[str]
    """``user:<SHA-256 of the name>`` or ``address:<client>``: rubbish typed as a name is not kept."""
    at: Mapped[datetime] = mapped_column(server_default=_now)


class Host(Base):
    """A machine with one agent."""

    __tablename__ = "hosts"
    __table_args__ = (
        _one_of("connection", "never", "online", "suspect", "unreachable"),
        CheckConstraint("epoch >= 0", name="epoch_grows"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    cordoned: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    connection: Mapped[str] = mapped_column(server_default="never")
    epoch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """The current agent session; every agent write must carry it."""
    revision: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Of the desired set; grows in the transaction that changes it."""
    machine_id: Mapped[str | None]
    boot_id: Mapped[str | None]
    agent_version: Mapped[str | None]
    inventory: Mapped[dict[str, Any] | None]
    """The last full inventory, as sent (without its GPUs, which have rows)."""
    cpus: Mapped[int | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    runtime: Mapped[str | None]
    runtime_healthy: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    runtime_detail: Mapped[str | None]
    address: Mapped[str | None]
    shared_home: Mapped[str | None]
    quarantined: Mapped[list[str]] = mapped_column(server_default=text("'{}'::text[]"))
    last_heartbeat_at: Mapped[datetime | None]
    registered_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class HostSample(Base):
    """What a heartbeat measured, one row for all GPUs of a host. Short-lived; swept by retention."""

    __tablename__ = "host_samples"

    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True, server_default=_now)
    host: Mapped[dict[str, Any]]
    gpus: Mapped[dict[str, Any]]
    """By GPU UUID: the wire type ``GpuMetrics``."""
    workloads: Mapped[dict[str, Any]]
    """By workload id: the wire type ``WorkloadMetrics``."""


class Gpu(Base):
    """One GPU. Rows appear only from an agent's inventory."""

    __tablename__ = "gpus"
    __table_args__ = (
        UniqueConstraint("id", "host_id"),
        _one_of("health", "healthy", "unhealthy", "missing"),
        Index("ix_gpus_host", "host_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    uuid: Mapped[str] = mapped_column(unique=True)
    index: Mapped[int] = mapped_column(Integer)
    model: Mapped[str]
    product: Mapped[str]
    memory_total_bytes: Mapped[int] = mapped_column(BigInteger)
    pci_bus_id: Mapped[str | None]
    numa_node: Mapped[int | None] = mapped_column(Integer)
    simulated: Mapped[bool] = mapped_column(Boolean)
    health: Mapped[str] = mapped_column(server_default="healthy")
    health_reason: Mapped[str | None]


class Image(Base):
    """The allow-list."""

    __tablename__ = "images"
    __table_args__ = (_one_of("status", "active", "withdrawn"), _one_of("runtime", "docker", "process"))

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    reference: Mapped[str]
    display_name: Mapped[str]
    description: Mapped[str]
    digest: Mapped[str | None]
    runtime: Mapped[str]
    command: Mapped[list[str] | None]
    status: Mapped[str] = mapped_column(server_default="active")
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class Volume(Base):
    """A home directory: on one host's disk, or under a shared root. Outlives environments."""

    __tablename__ = "volumes"
    __table_args__ = (
        CheckConstraint("(host_id IS NULL) <> (shared_home IS NULL)", name="on_host_or_shared"),
        Index(
            "uq_volumes_owner_host",
            "owner_id",
            "host_id",
            unique=True,
            postgresql_where=text("host_id IS NOT NULL"),
        ),
        Index(
            "uq_volumes_owner_shared",
            "owner_id",
            "shared_home",
            unique=True,
            postgresql_where=text("shared_home IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"), index=True)
    host_id: Mapped[str | None] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    shared_home: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    last_used_at: Mapped[datetime] = mapped_column(server_default=_now)


class Environment(Base):
    """An interactive container. The API writes ``desired``; agents' reports write ``observed``; ``status``
    is their projection, written by ``environments.lifecycle`` alone and guarded by a trigger.
    """

    __tablename__ = "environments"
    __table_args__ = (
        _one_of("desired", "running", "stopped", "deleted"),
        _one_of(
            "observed",
            "absent",
            "pulling",
            "creating",
            "starting",
            "running",
            "stopping",
            "exited",
            "failed",
            "unknown",
        ),
        _one_of(
            "status",
            "pending",
            "starting",
            "running",
            "stopping",
            "stopped",
            "failed",
            "unreachable",
            "deleted",
        ),
        CheckConstraint("gpus >= 0 AND cpus > 0 AND memory_bytes > 0", name="sizes"),
        Index(
            "uq_environments_owner_name",
            "owner_id",
            "name",
            unique=True,
            postgresql_where=text("status <> 'deleted'"),
        ),
        Index("ix_environments_pending", "queued_at", postgresql_where=text("status = 'pending'")),
        Index("ix_environments_customer", "customer_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"), index=True)
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    name: Mapped[str]
    display_name: Mapped[str]
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="RESTRICT"))
    gpus: Mapped[int] = mapped_column(Integer)
    gpu_model: Mapped[str | None]
    cpus: Mapped[float]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    env: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    secret_env: Mapped[bytes | None]
    """Encrypted; wiped when the environment stops."""
    desired: Mapped[str]
    observed: Mapped[str] = mapped_column(server_default="absent")
    status: Mapped[str]
    reason: Mapped[str]
    message: Mapped[str]
    progress_percent: Mapped[int | None] = mapped_column(Integer)
    generation: Mapped[int] = mapped_column(BigInteger, server_default="1")
    address: Mapped[str | None]
    exit_code: Mapped[int | None] = mapped_column(Integer)
    log_tail: Mapped[str | None]
    queued_at: Mapped[datetime] = mapped_column(server_default=_now)
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    started_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]


class Placement(Base):
    """A live hold of CPU, memory and a home on one host by one start of an environment.

    Released exactly once, on proof of absence; GPUs hang on it as :class:`Allocation` rows.
    """

    __tablename__ = "placements"
    __table_args__ = (
        UniqueConstraint("id", "host_id"),
        Index(
            "uq_placements_live_environment",
            "environment_id",
            unique=True,
            postgresql_where=text("released_at IS NULL"),
        ),
        Index("ix_placements_live_host", "host_id", postgresql_where=text("released_at IS NULL")),
        Index("ix_placements_live_user", "user_id", postgresql_where=text("released_at IS NULL")),
        Index("ix_placements_live_customer", "customer_id", postgresql_where=text("released_at IS NULL")),
        CheckConstraint("(released_at IS NULL) = (release_proof IS NULL)", name="released_with_proof"),
        _one_of("release_proof", "absent", "reboot", "admin"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="RESTRICT"))
    generation: Mapped[int] = mapped_column(BigInteger)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="RESTRICT"))
    cpus: Mapped[float]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    placed_at: Mapped[datetime] = mapped_column(server_default=_now)
    released_at: Mapped[datetime | None]
    release_proof: Mapped[str | None]


class Allocation(Base):
    """A live promise of one GPU to one placement: the unit of exclusivity.

    The partial unique index decides who gets a GPU, whatever the callers believe.
    """

    __tablename__ = "allocations"
    __table_args__ = (
        ForeignKeyConstraint(["gpu_id", "host_id"], ["gpus.id", "gpus.host_id"], ondelete="RESTRICT"),
        ForeignKeyConstraint(
            ["placement_id", "host_id"], ["placements.id", "placements.host_id"], ondelete="RESTRICT"
        ),
        Index("uq_allocations_live_gpu", "gpu_id", unique=True, postgresql_where=text("released_at IS NULL")),
        Index("ix_allocations_placement", "placement_id"),
        Index("ix_allocations_live_user", "user_id", postgresql_where=text("released_at IS NULL")),
        CheckConstraint("(released_at IS NULL) = (release_proof IS NULL)", name="released_with_proof"),
        _one_of("release_proof", "absent", "reboot", "admin"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    gpu_id: Mapped[str]
    host_id: Mapped[str]
    placement_id: Mapped[str]
    environment_id: Mapped[str] = mapped_column(
        ForeignKey("environments.id", ondelete="RESTRICT"), index=True
    )
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    allocated_at: Mapped[datetime] = mapped_column(server_default=_now)
    released_at: Mapped[datetime | None]
    release_proof: Mapped[str | None]


class Quota(Base):
    """One limit. Locked in id order by every transaction that allocates against it."""

    __tablename__ = "quotas"
    __table_args__ = (
        UniqueConstraint("subject_type", "subject_id", "resource"),
        _one_of("subject_type", "user", "customer"),
        _one_of("resource", "gpus", "environments", "cpus", "memory_bytes"),
        CheckConstraint("limit_value IS NULL OR limit_value >= 0", name="limit_not_negative"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    resource: Mapped[str]
    limit_value: Mapped[int | None] = mapped_column(BigInteger)
    """``NULL``: unlimited."""
    changed_at: Mapped[datetime] = mapped_column(server_default=_now)


class Event(Base):
    """What happened, written in the transaction that made it happen.

    Readers take rows whose transaction is older than every running one, ordered by (xid, id): a row that
    commits late can then never hide behind a position that was already handed out.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_position", "xid", "id"),
        Index("ix_events_subject", "subject_type", "subject_id", "id"),
        Index("ix_events_at", "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    xid: Mapped[str] = mapped_column(Xid8(), server_default=func.pg_current_xact_id())
    at: Mapped[datetime] = mapped_column(server_default=_now)
    kind: Mapped[str]
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    actor: Mapped[str]
    customer_id: Mapped[str | None]
    """Who may see it besides admins: the user, and owners of the customer. Both null: admins only."""
    user_id: Mapped[str | None]
    reason: Mapped[str | None]
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))


class IdempotencyKey(Base):
    """The answer to a create that carried a key: asked again, it is given again."""

    __tablename__ = "idempotency_keys"

    principal: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    request_hash: Mapped[bytes]
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[bytes]
    """Encrypted, because a created token's answer holds its secret."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class LogRequest(Base):
    """A reader waits for a container's output; the agent answers over its long poll. Swept after a minute."""

    __tablename__ = "log_requests"
    __table_args__ = (Index("ix_log_requests_open", "host_id", postgresql_where=text("answered_at IS NULL")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"))
    tail_lines: Mapped[int] = mapped_column(Integer)
    text: Mapped[str | None]
    truncated: Mapped[bool | None] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    answered_at: Mapped[datetime | None]


class Leadership(Base):
    """Who runs the loops. The term is issued here and fences every write of a past leader."""

    __tablename__ = "leadership"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    term: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]
