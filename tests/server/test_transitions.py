"""Every declared table of transitions: what the code says, what the database refuses, what the page shows.

A machine is a line in ``MACHINES``. A trigger named ``*_transition`` without one fails, so a new state
machine is compared from its first day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from remotegpu_server.db import tables, transitions

DOCS = Path(__file__).resolve().parents[2] / "docs"
_ARROW = re.compile(r"^\s*(\w+) --> (\w+)(?::.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """One column with declared moves. ``page`` holds its Mermaid picture."""

    table: str
    column: str
    moves: Mapping[str, frozenset[str]]
    page: str

    @property
    def states(self) -> list[str]:
        return sorted(self.moves)

    @property
    def edges(self) -> set[tuple[str, str]]:
        return {(before, after) for before, targets in self.moves.items() for after in targets}


MACHINES = [
    Machine("environments", "status", transitions.TRANSITIONS, "lifecycle.md"),
    Machine("hosts", "operational", transitions.HOST_OPERATIONAL, "hosts.md"),
    Machine("dedications", "status", transitions.DEDICATION_STATUS, "dedications.md"),
    Machine("image_saves", "status", transitions.IMAGE_SAVE_STATUS, "images.md"),
    Machine("alerts", "status", transitions.ALERT_STATUS, "alerts.md"),
    Machine("tasks", "status", transitions.TASK_STATUS, "tasks.md"),
    Machine("attempts", "status", transitions.ATTEMPT_STATUS, "tasks.md"),
]
_IDS = [f"{one.table}.{one.column}" for one in MACHINES]


async def test_every_guarded_column_is_compared_here(app: FastAPI) -> None:
    async with app.state.database.sessions() as db:
        guarded = await db.scalars(
            sa.text(
                "SELECT c.relname || '.' || a.attname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
                " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (t.tgattr)"
                " WHERE t.tgname LIKE '%\\_transition'"
            )
        )
        assert sorted(guarded) == sorted(_IDS)


@pytest.mark.parametrize("machine", MACHINES, ids=_IDS)
async def test_database_allows_the_declared_moves_and_no_other(app: FastAPI, machine: Machine) -> None:
    async with app.state.database.sessions() as db:
        allowed = {
            (before, after)
            for before in machine.states
            for after in machine.states
            if before != after and await _allowed(db, machine, before, after)
        }
    assert allowed == machine.edges


@pytest.mark.parametrize("machine", MACHINES, ids=_IDS)
async def test_column_takes_the_declared_states_and_no_other(app: FastAPI, machine: Machine) -> None:
    async with app.state.database.sessions() as db:
        definition = await db.scalar(
            sa.text(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE conrelid = CAST(:table AS regclass) AND conname = :name"
            ),
            {"table": machine.table, "name": f"ck_{machine.table}_{machine.column}_known"},
        )
    assert sorted(set(re.findall(r"'(\w+)'", definition))) == machine.states


@pytest.mark.parametrize("machine", MACHINES, ids=_IDS)
def test_page_shows_the_declared_moves_and_no_other(machine: Machine) -> None:
    pictures = re.findall(r"```mermaid\n(.*?)```", (DOCS / machine.page).read_text(), re.DOTALL)
    shown = [set(_ARROW.findall(picture)) for picture in pictures]
    assert machine.edges in shown


@pytest.mark.parametrize("machine", MACHINES, ids=_IDS)
def test_every_state_can_be_reached_and_left_unless_it_is_the_end(machine: Machine) -> None:
    reached = {after for _, after in machine.edges}
    assert len(set(machine.states) - reached) <= 1, "only the first state is not entered"
    assert reached <= set(machine.states)


async def _allowed(db: AsyncSession, machine: Machine, before: str, after: str) -> bool:
    """Whether the trigger lets the move through; everything is rolled back."""
    try:
        connection = await db.connection()
        async with connection.begin_nested() as savepoint:
            await _plant(connection, machine, before)
            try:
                await connection.execute(
                    sa.text(f"UPDATE {machine.table} SET {machine.column} = :after"),  # noqa: S608
                    {"after": after},
                )
            except DBAPIError as error:
                if "cannot become" not in str(error):
                    raise
                return False
            finally:
                await savepoint.rollback()
    finally:
        await db.rollback()
    return True


async def _plant(connection: AsyncConnection, machine: Machine, state: str) -> None:
    """One row in that state, whatever else the table demands: this is about the trigger alone."""
    table = tables.Base.metadata.tables[machine.table]
    checks = await connection.scalars(
        sa.text(
            "SELECT conname FROM pg_constraint WHERE conrelid = CAST(:table AS regclass) "
            " AND contype IN ('c', 'f')"
        ),
        {"table": machine.table},
    )
    for name in checks.all():
        await connection.execute(sa.text(f'ALTER TABLE {machine.table} DROP CONSTRAINT "{name}"'))
    values: dict[str, Any] = {
        column.name: _something(column)
        for column in table.columns
        if not column.nullable and column.server_default is None and column.identity is None
    }
    await connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
    await connection.execute(sa.insert(table).values(values | {machine.column: state}))
    await connection.execute(sa.text("SET LOCAL session_replication_role = origin"))


def _something(column: sa.Column[Any]) -> Any:
    kind = column.type.python_type
    known = {str: "x", int: 1, float: 1.0, bool: True, bytes: b"x", dict: {}, list: []}
    return datetime(2026, 1, 1, tzinfo=UTC) if kind is datetime else known[kind]
