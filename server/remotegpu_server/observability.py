"""Logs as JSON lines without secrets, and the metrics of this process."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

from remotegpu_server.tokens import secret as token_secret

REQUESTS = Histogram(
    "remotegpu_http_request_seconds",
    "Time to answer, by route template; streams and long polls count until their end.",
    ["method", "route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
UNHANDLED = Counter("remotegpu_unhandled_errors_total", "Requests that failed with server_error.")
LOOP_LAST_TICK = Gauge("remotegpu_loop_last_tick_seconds", "Unix time of the last good pass.", ["loop"])
LOOP_SECONDS = Histogram("remotegpu_loop_pass_seconds", "Time of a good pass.", ["loop"])
LOOP_FAILURES = Counter("remotegpu_loop_failures_total", "Passes that failed.", ["loop"])
LOOP_ITEM_FAILURES = Counter(
    "remotegpu_loop_item_failures_total",
    "Items of a pass that failed, left for the next.",
    ["loop"],
)
AUDIT_LOST = Counter("remotegpu_audit_refusals_lost_total", "Refusals that could not be written down.")
LEADING = Gauge("remotegpu_leading", "1 while this process runs the loops.")
POOL_IN_USE = Gauge("remotegpu_db_connections_in_use", "Checked-out database connections.", ["pool"])
INVARIANT_VIOLATIONS = Gauge(
    "remotegpu_invariant_violations",
    "Rows that break an invariant; always 0 on a healthy system.",
    ["invariant"],
)
ESTIMATE_ERROR_SECONDS = Histogram(
    "remotegpu_start_estimate_error_seconds",
    "Distance between the first estimate of a waiting start (its p50) and the real start.",
    buckets=(5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400),
)
ESTIMATE_MEDIAN_ERROR_SECONDS = Gauge(
    "remotegpu_start_estimate_median_error_seconds", "The same, median of the last 30 days."
)
OUTBOX = Counter(
    "remotegpu_outbox_attempts_total", "Attempts to deliver mail and webhooks.", ["channel", "outcome"]
)
LOGIN_FAILURES = Counter("remotegpu_login_failures_total", "Refused sign-ins.", ["why"])

_SECRET_KEYS = frozenset(
    {"authorization", "cookie", "password", "secret", "token", "secret_env", "credential"}
)


def redact(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove tokens from every text and the values of keys that hold secrets."""
    return {key: _clean(value, key) for key, value in entry.items()}


def _clean(value: Any, key: str = "") -> Any:
    if key.lower() in _SECRET_KEYS:
        return "[redacted]"
    if isinstance(value, str):
        return token_secret.PATTERN.sub(lambda found: found.group()[:4] + "[redacted]", value)
    if isinstance(value, dict):
        return {str(name): _clean(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(inner) for inner in value]
    return value


def configure_logging(level: str) -> None:
    """JSON lines on stderr for our own messages and those of libraries."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
