"""The pool of connections when PostgreSQL ends some of them."""

from __future__ import annotations

from sqlalchemy import text

from remotegpu_server.db.engine import connect


async def test_a_connection_that_postgresql_has_ended_is_not_given_out(database_url: str) -> None:
    database = connect(database_url, pool_size=1)
    other = connect(database_url, pool_size=1)
    try:
        async with database.sessions() as db:
            first = await db.scalar(text("SELECT pg_backend_pid()"))
        async with other.sessions() as db:
            ended = text("SELECT pg_terminate_backend(:pid, 10000)")  # waits until it is gone
            assert await db.scalar(ended, {"pid": first})
        async with database.sessions() as db:
            assert await db.scalar(text("SELECT pg_backend_pid()")) != first
    finally:
        await database.close()
        await other.close()


async def test_a_connection_that_stands_is_used_again(database_url: str) -> None:
    database = connect(database_url, pool_size=1)
    try:
        seen = set()
        for _ in range(3):
            async with database.sessions() as db:
                seen.add(await db.scalar(text("SELECT pg_backend_pid()")))
    finally:
        await database.close()
    assert len(seen) == 1
