"""``remotegpu-server serve | migrate | init | create-token | check-invariants``."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from remotegpu.types.audit import AuditVerification
from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import bootstrap, embedded_postgres, invariants
from remotegpu_server.app import create_app
from remotegpu_server.audit import chain
from remotegpu_server.db import schema
from remotegpu_server.db.engine import connect
from remotegpu_server.db.notify import Signals
from remotegpu_server.observability import configure_logging
from remotegpu_server.settings import Settings, SettingsError, data_folder, from_environ

_DATABASE = "remotegpu"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (SettingsError, embedded_postgres.EmbeddedPostgresError, ValueError) as error:
        sys.exit(f"remotegpu-server: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remotegpu-server", description="The system of record of RemoteGPU. Settings: REMOTEGPU_*."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server; prepares an empty database first")
    serve.set_defaults(run=_serve)
    init = commands.add_parser("init", help="prepare the database and the first accounts, then end")
    init.set_defaults(run=_init)
    for command in (serve, init):
        command.add_argument("--admin-password-file", type=Path, help="where a new admin password is written")
        command.add_argument("--hub-token-file", type=Path, help="where a new token of the hub is written")
    migrate = commands.add_parser("migrate", help="bring the database to this version's schema")
    migrate.set_defaults(run=_migrate)
    check = commands.add_parser("check-invariants", help="find rows that break what must always hold")
    check.set_defaults(run=_check_invariants)
    trail = commands.add_parser("audit", help="the audit trail").add_subparsers(required=True, metavar="VERB")
    verify = trail.add_parser("verify", help="walk the hash chain; exit status 1 when it is broken")
    verify.add_argument("--sequence", type=int, help="of a record that somebody kept")
    verify.add_argument("--hash", help="its hash")
    verify.set_defaults(run=_verify_audit)
    token = commands.add_parser("create-token", help="make a token and print its secret")
    token.add_argument("--name", required=True)
    owner = token.add_mutually_exclusive_group(required=True)
    owner.add_argument("--user", help="a user's API token")
    owner.add_argument("--service", action="store_true", help="a service's token")
    token.add_argument("--scope", action="append", choices=["all", "read", "act_as", "metrics"])
    token.set_defaults(run=_create_token)
    return parser


def database_url() -> str:
    """``REMOTEGPU_DATABASE_URL``, or the embedded PostgreSQL in the data folder, started if need be."""
    given = os.environ.get("REMOTEGPU_DATABASE_URL")
    if given:
        return given
    postgres = embedded_postgres.ensure_running(data_folder(os.environ) / "postgres")
    postgres.ensure_database(_DATABASE)
    return postgres.url(_DATABASE)


def _settings() -> Settings:
    settings = from_environ(os.environ, database_url=database_url())
    configure_logging(settings.log_level)
    return settings


def _migrate(_arguments: argparse.Namespace) -> None:
    changed = schema.migrate(database_url())
    print("migrated" if changed else "the schema is current")


def _init(arguments: argparse.Namespace) -> None:
    _prepare(_settings(), arguments)


def _prepare(settings: Settings, arguments: argparse.Namespace) -> None:
    """Schema and first accounts. A password without a file is printed, this once."""
    schema.migrate(settings.database_url)
    created = asyncio.run(_initialise(settings, arguments))
    if created.admin_password is not None and arguments.admin_password_file is None:
        print(
            f"Admin account made. User name: {bootstrap.ADMIN}  one-time password: {created.admin_password}"
        )
        print("Change it after the first login. It is not shown again.", flush=True)


async def _initialise(settings: Settings, arguments: argparse.Namespace) -> bootstrap.Created:
    database = connect(settings.database_url, pool_size=1)
    try:
        return await bootstrap.initialise(
            database,
            admin_password_file=arguments.admin_password_file,
            hub_token_file=arguments.hub_token_file,
        )
    finally:
        await database.close()


def _create_token(arguments: argparse.Namespace) -> None:
    settings = _settings()
    default = [Scope.ACT_AS] if arguments.service else [Scope.ALL]
    scopes = [Scope(scope) for scope in arguments.scope or default]

    async def make() -> str:
        database = connect(settings.database_url, pool_size=1)
        try:
            return await bootstrap.make_token(
                database,
                kind=TokenKind.SERVICE if arguments.service else TokenKind.USER,
                name=arguments.name,
                scopes=scopes,
                username=arguments.user,
            )
        finally:
            await database.close()

    print(asyncio.run(make()))


def _check_invariants(_arguments: argparse.Namespace) -> None:
    """Prints the broken invariants with the ids of their rows; exit status 1 when there are any."""

    async def check() -> dict[str, list[str]]:
        database = connect(database_url(), pool_size=1)
        try:
            async with database.sessions() as db:
                return await invariants.violations(db)
        finally:
            await database.close()

    found = asyncio.run(check())
    for name, rows in found.items():
        print(f"{name}: {', '.join(rows)}")
    if found:
        sys.exit(1)
    print(f"all {len(invariants.CHECKS)} invariants hold")


def _verify_audit(arguments: argparse.Namespace) -> None:
    if (arguments.sequence is None) != (arguments.hash is None):
        raise ValueError("--sequence and --hash go together")
    anchor = (arguments.sequence, arguments.hash) if arguments.hash else None

    async def verify() -> AuditVerification:
        database = connect(database_url(), pool_size=1)
        try:
            return await chain.verify(database.sessions, anchor=anchor)
        finally:
            await database.close()

    found = asyncio.run(verify())
    print(f"{found.records} records verified, {found.unsealed} not sealed yet; head {found.head}")
    if not found.valid:
        sys.exit(f"remotegpu-server: the audit trail is broken: {found.problem}")


class _Server(uvicorn.Server):
    """Ends long polls and streams as soon as it is told to stop; uvicorn alone would wait for them."""

    def __init__(self, config: uvicorn.Config, signals: Signals) -> None:
        super().__init__(config)
        self._signals = signals

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals.stop_waiting()
        super().handle_exit(sig, frame)


def _serve(arguments: argparse.Namespace) -> None:
    settings = _settings()
    _prepare(settings, arguments)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        backlog=512,
    )
    sockets = [_bind(host, port) for host, port in settings.listen]
    server = _Server(config, app.state.database.signals)
    try:
        server.run(sockets=sockets)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if not server.started:
        sys.exit(3)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; see REMOTEGPU_LISTEN"
        ) from error
    bound.set_inheritable(True)
    return bound


if __name__ == "__main__":
    main()
