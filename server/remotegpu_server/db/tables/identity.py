"""Tenants, logins and their tokens."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class Customer(Base):
    """A tenant."""

    __tablename__ = "customers"
    __table_args__ = (
        one_of("status", "active", "suspended"),
        Index("uq_customers_code", "code", unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]
    company: Mapped[str] = mapped_column(server_default="")
    code: Mapped[str | None]
    """The organisation's own number of it (a cost centre, a contract), unique."""
    status: Mapped[str] = mapped_column(server_default="active")
    stop_environments_at: Mapped[datetime | None]
    """Of a suspended one: when what runs is stopped; null keeps it running."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class User(Base):
    """A login. Names are stored in lower case, and compared so."""

    __tablename__ = "users"
    __table_args__ = (
        one_of("role", "admin", "owner", "member"),
        one_of("status", "active", "suspended", "deleted"),
        CheckConstraint("username = lower(username)", name="username_lower"),
        CheckConstraint("(oidc_issuer IS NULL) = (oidc_subject IS NULL)", name="oidc_whole"),
        Index(
            "uq_users_email", text("lower(email)"), unique=True, postgresql_where=text("status <> 'deleted'")
        ),
        Index("uq_users_oidc", "oidc_issuer", "oidc_subject", unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]
    full_name: Mapped[str] = mapped_column(server_default="")
    email: Mapped[str | None]
    phone: Mapped[str | None]
    avatar_url: Mapped[str | None]
    role: Mapped[str] = mapped_column(server_default="member")
    status: Mapped[str] = mapped_column(server_default="active")
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"), index=True)
    password_hash: Mapped[str]
    """Empty for somebody who signs in elsewhere only (OIDC)."""
    password_change_required: Mapped[bool] = mapped_column(Boolean, server_default=false())
    """Set with a one-time password: nothing but changing it is allowed."""
    oidc_issuer: Mapped[str | None]
    oidc_subject: Mapped[str | None]
    """The pair is who the person is at the provider; names and addresses there may change."""
    stop_environments_at: Mapped[datetime | None]
    """Of a suspended or deleted one: when what runs is stopped; null keeps it running."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class PasswordReset(Base):
    """A one-time link to a new password; only the SHA-256 of its secret is stored."""

    __tablename__ = "password_resets"
    __table_args__ = (Index("ix_password_resets_user", "user_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    secret_hash: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    mail: Mapped[bytes | None]
    """The secret, encrypted, as long as its mail was not sent."""


class OidcLogin(Base):
    """A sign-in that went to the identity provider and is not back; taken once, swept when old."""

    __tablename__ = "oidc_logins"
    __table_args__ = (Index("ix_oidc_logins_created_at", "created_at"),)

    state_hash: Mapped[bytes] = mapped_column(primary_key=True)
    nonce: Mapped[str]
    verifier: Mapped[bytes]
    """The PKCE verifier, encrypted."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class Workspace(Base):
    """Where environments and tasks live. Everybody has a personal one; teams share others."""

    __tablename__ = "workspaces"
    __table_args__ = (
        UniqueConstraint("id", "customer_id"),
        one_of("kind", "personal", "team"),
        one_of("status", "active", "archived", "deleted"),
        CheckConstraint("char_length(name) BETWEEN 1 AND 128", name="name_length"),
        CheckConstraint("(kind = 'personal') = (personal_of IS NOT NULL)", name="personal_owned"),
        CheckConstraint("max_lifetime_s > 0", name="ceiling"),
        Index(
            "uq_workspaces_customer_name",
            "customer_id",
            "name",
            unique=True,
            postgresql_where=text("kind = 'team' AND status = 'active'"),
        ),
        Index("uq_workspaces_personal_of", "personal_of", unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    kind: Mapped[str]
    personal_of: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    status: Mapped[str] = mapped_column(server_default="active")
    max_lifetime_s: Mapped[float | None]
    """What starts in it runs so long at most; ``NULL``: it sets no ceiling."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class WorkspaceMember(Base):
    """One user's part in a workspace; counts are computed from these rows."""

    __tablename__ = "workspace_members"
    __table_args__ = (
        one_of("role", "owner", "admin", "member", "viewer"),
        one_of("status", "active", "invited", "suspended"),
        Index("ix_workspace_members_user", "user_id"),
        Index(
            "uq_workspace_members_owner", "workspace_id", unique=True, postgresql_where=text("role = 'owner'")
        ),
    )

    workspace_id: Mapped[str] = mapped_column(
        ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="active")
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    joined_at: Mapped[datetime | None]


class Token(Base):
    """A bearer token; only its SHA-256 is stored (256 random bits need no slow hash, ASVS 6.5.2)."""

    __tablename__ = "tokens"
    __table_args__ = (
        one_of("kind", "user", "service", "agent", "workload", "enrollment"),
        CheckConstraint("(kind = 'user') <= (user_id IS NOT NULL)", name="user_owned"),
        CheckConstraint("(kind IN ('agent', 'enrollment')) <= (host_id IS NOT NULL)", name="host_bound"),
        CheckConstraint(
            "(kind = 'workload') <= ((environment_id IS NULL) <> (attempt_id IS NULL)"
            " AND user_id IS NOT NULL)",
            name="workload_bound",
        ),
        Index("ix_tokens_live_user", "user_id", postgresql_where=text("revoked_at IS NULL")),
        Index("ix_tokens_environment", "environment_id", postgresql_where=text("environment_id IS NOT NULL")),
        Index("ix_tokens_ended", text("least(expires_at, revoked_at)")),
        Index("ix_tokens_attempt", "attempt_id", postgresql_where=text("attempt_id IS NOT NULL")),
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
    attempt_id: Mapped[str | None] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=now)
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
    at: Mapped[datetime] = mapped_column(server_default=now)
