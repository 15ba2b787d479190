"""Suspending accounts, customers and users alike: when what runs is stopped."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, null

from remotegpu.errors import Invalid
from remotegpu.types.identity import RunningWork, Suspension

WAKE = "suspensions"
"""Hint for the loop that stops what runs."""


def stop_at(policy: Suspension) -> ColumnElement[Any]:
    """When running environments are stopped, by the database's clock; NULL keeps them."""
    if policy.environments is RunningWork.UNKNOWN:
        raise Invalid("environments: must be keep, stop or stop_after_grace.")
    if policy.environments is RunningWork.KEEP:
        return null()
    grace_s = policy.grace_s if policy.environments is RunningWork.STOP_AFTER_GRACE else 0
    return func.now() + timedelta(seconds=grace_s)


def in_words(policy: Suspension) -> str:
    """What happens to what runs."""
    if policy.environments is RunningWork.STOP:
        return "what runs is stopped"
    if policy.environments is RunningWork.STOP_AFTER_GRACE:
        return f"what runs is stopped in {policy.grace_s} seconds"
    return "what runs is kept"
