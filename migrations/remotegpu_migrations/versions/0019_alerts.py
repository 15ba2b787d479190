"""Alert rules, alerts and silences; the seeded rules."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

ALERT_STATUS = {"pending": ("firing",), "firing": ("resolved",), "resolved": ()}
"""As of this revision; a frozen copy of ``remotegpu_server.db.transitions``."""

SEEDS = (
    # name, signal, operator, threshold, seconds, severity
    ("agent-offline", "host_silent_s", ">", 300, 0, "critical"),
    ("hosts-cut-off", "hosts_silent_percent", ">", 50, 60, "critical"),
    ("agent-outdated", "agent_outdated", ">", 0, 3600, "info"),
    ("gpu-temperature-high", "gpu_temperature_c", ">", 85, 180, "warning"),
    ("gpu-temperature-critical", "gpu_temperature_c", ">", 95, 60, "critical"),
    ("gpu-memory-high", "gpu_memory_percent", ">", 90, 300, "warning"),
    ("gpu-power-capped", "gpu_power_percent", ">=", 100, 900, "info"),
    ("gpu-unhealthy", "gpu_unhealthy", ">", 0, 0, "critical"),
    ("gpu-xid", "gpu_xid", ">", 0, 0, "warning"),
    ("gpu-ecc", "gpu_ecc_uncorrected", ">", 0, 0, "warning"),
    ("gpu-down", "gpu_metrics_missing", ">", 0, 180, "critical"),
    ("gpu-idle", "gpu_idle_s", ">", 3600, 0, "info"),
    ("cpu-high", "host_cpu_percent", ">", 85, 300, "warning"),
    ("memory-high", "host_memory_percent", ">", 90, 300, "warning"),
    ("disk-low", "host_disk_percent", ">", 85, 300, "warning"),
    ("disk-high", "host_disk_percent", ">", 90, 180, "critical"),
    ("disk-critical", "host_disk_percent", ">", 95, 60, "critical"),
    ("metrics-missing", "metrics_missing_s", ">", 180, 0, "warning"),
    ("task-stuck", "task_overdue_s", ">", 0, 60, "warning"),
    ("quota-gpu-hours-near", "quota_gpu_hours_percent", ">=", 90, 0, "info"),
    ("quota-storage-near", "quota_storage_percent", ">=", 90, 0, "info"),
    ("estimate-wrong", "estimate_error_s", ">", 3600, 3600, "info"),
    ("login-failures", "login_failures", ">=", 5, 0, "warning"),
    ("database-connections", "database_connections_percent", ">", 80, 300, "warning"),
    ("mail-waits", "outbox_waiting_s", ">", 3600, 0, "warning"),
)

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_JSON = postgresql.JSONB(astext_type=sa.Text())
_SEVERITIES = "severity IN ('info', 'warning', 'critical')"


def _text(name: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable, server_default=default)


def upgrade() -> None:
    rules = op.create_table(
        "alert_rules",
        _text("id"),
        _text("name"),
        _text("signal"),
        _text("operator"),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("duration_s", sa.Double(), nullable=False),
        _text("severity"),
        sa.Column("scope", _JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        _text("advice", default=""),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("built_in", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _text("last_error", nullable=True),
        _text("created_by"),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("changed_at", _TIME, server_default=_NOW, nullable=False),
        sa.CheckConstraint(
            "operator IN ('>', '>=', '<', '<=', '==')", name=op.f("ck_alert_rules_operator_known")
        ),
        sa.CheckConstraint(_SEVERITIES, name=op.f("ck_alert_rules_severity_known")),
        sa.CheckConstraint("duration_s >= 0", name=op.f("ck_alert_rules_duration_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_rules")),
        sa.UniqueConstraint("name", name=op.f("uq_alert_rules_name")),
    )
    op.create_table(
        "alerts",
        _text("id"),
        _text("rule_id", nullable=True),
        _text("rule_name"),
        _text("severity"),
        _text("status", default="pending"),
        _text("object_type"),
        _text("object_id"),
        _text("object_name"),
        sa.Column("value", sa.Double(), nullable=False),
        _text("unit"),
        _text("message"),
        _text("user_id", nullable=True),
        _text("customer_id", nullable=True),
        _text("workspace_id", nullable=True),
        sa.Column("since", _TIME, server_default=_NOW, nullable=False),
        sa.Column("true_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("fired_at", _TIME, nullable=True),
        sa.Column("told_at", _TIME, nullable=True),
        sa.Column("resolved_at", _TIME, nullable=True),
        _text("resolution", nullable=True),
        sa.Column("flaps", sa.Integer(), server_default="0", nullable=False),
        _text("acknowledged_by", nullable=True),
        sa.Column("acknowledged_at", _TIME, nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'firing', 'resolved')", name=op.f("ck_alerts_status_known")
        ),
        sa.CheckConstraint(_SEVERITIES, name=op.f("ck_alerts_severity_known")),
        sa.CheckConstraint("(status = 'pending') = (fired_at IS NULL)", name=op.f("ck_alerts_fired")),
        sa.CheckConstraint(
            "(status = 'resolved') = (resolved_at IS NOT NULL)", name=op.f("ck_alerts_resolved")
        ),
        sa.CheckConstraint(
            "(acknowledged_at IS NULL) = (acknowledged_by IS NULL)", name=op.f("ck_alerts_acknowledged")
        ),
        sa.ForeignKeyConstraint(
            ["rule_id"], ["alert_rules.id"], name=op.f("fk_alerts_rule_id_alert_rules"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
    )
    op.create_index(
        "uq_alerts_live",
        "alerts",
        ["rule_id", "object_type", "object_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('pending', 'firing')"),
    )
    op.create_index("ix_alerts_resolved", "alerts", ["rule_id", "resolved_at"])
    op.create_index("ix_alerts_position", "alerts", ["created_at", "id"])
    op.create_table(
        "alert_silences",
        _text("id"),
        _text("rule_id", nullable=True),
        _text("object", nullable=True),
        sa.Column("until", _TIME, nullable=False),
        _text("reason", default=""),
        _text("created_by"),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["rule_id"],
            ["alert_rules.id"],
            name=op.f("fk_alert_silences_rule_id_alert_rules"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_silences")),
    )
    op.create_index("ix_alert_silences_until", "alert_silences", ["until"])
    _guard()
    op.bulk_insert(
        rules,
        [
            {
                "id": f"rul-{name}",
                "name": name,
                "signal": signal,
                "operator": operator,
                "threshold": threshold,
                "duration_s": duration_s,
                "severity": severity,
                "built_in": True,
                "created_by": "system",
            }
            for name, signal, operator, threshold, duration_s, severity in SEEDS
        ],
    )


def _guard() -> None:
    edges = ", ".join(
        f"('{source}', '{target}')" for source, targets in ALERT_STATUS.items() for target in targets
    )
    name = "alerts_status_transition"
    op.execute(
        f"""
        CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.status, NEW.status) IN ({edges}) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION '% of alerts: % cannot become %', OLD.id, OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = '{name}';
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER {name} BEFORE UPDATE OF status ON alerts
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION {name}()
        """
    )


def downgrade() -> None:
    for table in ("alert_silences", "alerts", "alert_rules"):
        op.drop_table(table)
    op.execute("DROP FUNCTION alerts_status_transition()")
