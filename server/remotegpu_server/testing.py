"""For tests of every part: people with tokens, and a real server process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from sqlalchemy import func, insert, select

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server.auth import passwords
from remotegpu_server.db import tables
from remotegpu_server.db.engine import Database
from remotegpu_server.tokens import service as tokens
from remotegpu_server.workspaces import service as workspaces

PASSWORD = "correct horse battery"  # noqa: S105


@dataclass(frozen=True)
class Person:
    """Somebody with a token."""

    id: str
    username: str
    customer_id: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


class Actors:
    """Makes customers, users and tokens straight in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def customer(self, name: str = "default") -> str:
        """Id of the customer of that name, made if it is not there."""
        async with self._database.sessions() as db:
            found = await db.scalar(select(tables.Customer.id).where(tables.Customer.name == name))
            if found is None:
                found = tables.new_id("cus")
                await db.execute(insert(tables.Customer).values(id=found, name=name, display_name=name))
                await db.commit()
            return found

    async def user(
        self,
        username: str,
        *,
        role: str = "member",
        customer: str = "default",
        scopes: tuple[Scope, ...] = (Scope.ALL,),
        password: str = PASSWORD,
    ) -> Person:
        """A new user with a token."""
        customer_id = await self.customer(customer)
        user_id = tables.new_id("usr")
        async with self._database.sessions() as db:
            await db.execute(
                insert(tables.User).values(
                    id=user_id,
                    username=username,
                    display_name=username,
                    role=role,
                    customer_id=customer_id,
                    password_hash=passwords.cheap_hash(password),
                )
            )
            await workspaces.make_personal(db, user_id=user_id, customer_id=customer_id, username=username)
            minted = await tokens.mint(db, kind=TokenKind.USER, scopes=scopes, name="test", user_id=user_id)
            await db.commit()
        return Person(id=user_id, username=username, customer_id=customer_id, secret=minted.secret)

    async def admin(self, username: str = "root") -> Person:
        """A platform admin with a token."""
        return await self.user(username, role="admin")

    async def alert(self, host: str = "none") -> str:
        """One that fires of a seeded rule, about a host of this name that there need not be."""
        alert_id = tables.new_id("alt")
        async with self._database.sessions() as db:
            rule = await db.scalar(select(tables.AlertRule).where(tables.AlertRule.name == "agent-offline"))
            assert rule is not None
            await db.execute(
                insert(tables.Alert).values(
                    id=alert_id,
                    rule_id=rule.id,
                    rule_name=rule.name,
                    severity=rule.severity,
                    status="firing",
                    object_type="host",
                    object_id=host,
                    object_name=host,
                    value=301.0,
                    unit="s",
                    message="Silent.",
                    fired_at=func.now(),
                )
            )
            await db.commit()
        return alert_id

    async def hub(self, *, scopes: tuple[Scope, ...] = (Scope.ACT_AS,)) -> str:
        """The secret of a service token."""
        async with self._database.sessions() as db:
            minted = await tokens.mint(db, kind=TokenKind.SERVICE, scopes=scopes, name="hub")
            await db.commit()
        return minted.secret


_START_S = 90
"""A server is there in two seconds; a machine full of tests takes its time."""


class LiveServer:
    """``remotegpu-server serve`` in a process of its own, on a free loopback port."""

    def __init__(self, *, database_url: str, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._database_url = database_url
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def admin_password(self) -> str:
        return (self.folder / "admin-password").read_text().strip()

    @property
    def hub_token(self) -> str:
        return (self.folder / "hub-token").read_text().strip()

    @property
    def admin_headers(self) -> dict[str, str]:
        """A fresh session of the admin."""
        answer = httpx.post(
            f"{self.url}/v1/auth/login",
            json={"username": "admin", "password": self.admin_password},
            timeout=10,
        )
        answer.raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['secret']}"}

    def start(self, **environ: str) -> None:
        """Start it and wait until it is ready; ``environ`` adds variables to this start."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "remotegpu_server",
                    "serve",
                    "--admin-password-file",
                    str(self.folder / "admin-password"),
                    "--hub-token-file",
                    str(self.folder / "hub-token"),
                ],
                env={
                    **os.environ,
                    "REMOTEGPU_HOME": str(self.folder),
                    "REMOTEGPU_DATABASE_URL": self._database_url,
                    "REMOTEGPU_LISTEN": f"127.0.0.1:{self.port}",
                    "REMOTEGPU_LOG_LEVEL": "debug",
                    **environ,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, closed or handed over."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it does not end. A server that has ended already is fine."""
        self._end(signal.SIGTERM)

    def wait_ended(self, timeout_s: float = 20) -> int:
        """Exit status of a server that ends by itself."""
        return self._running().wait(timeout_s)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise AssertionError("the server was not started")
        return self._process

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False
