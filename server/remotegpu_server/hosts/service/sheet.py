"""Hosts as a CSV sheet: exported, and imported row by row."""

from __future__ import annotations

import csv
import io

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NameTaken
from remotegpu.types.hosts import HostCreate, HostImport
from remotegpu.types.wire import BatchResult
from remotegpu_server import authz, spreadsheets
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.hosts.service import entries

COLUMNS = ("name", "hostname", "ip_address", "labels")
"""``labels`` is ``key=value;key=value``."""
MAX_ROWS = 1000


async def export_csv(db: AsyncSession, *, actor: Actor) -> str:
    """Every host, by name, in the columns that an import takes."""
    authz.require(actor, Action.HOST_READ)
    host = tables.Host
    rows = await db.execute(
        select(host.name, host.hostname, host.ip_address, host.labels).order_by(host.name)
    )
    return spreadsheets.line(COLUMNS) + "".join(
        spreadsheets.line([*cells, ";".join(f"{key}={value}" for key, value in sorted(labels.items()))])
        for *cells, labels in rows
    )


async def import_csv(db: AsyncSession, *, actor: Actor, body: HostImport) -> BatchResult:
    """Add a host for every row; a row that cannot be added is answered by its line, the others stand.

    Raises :class:`Invalid` for a head with unknown columns or without ``name``, and for too many rows.
    """
    authz.require(actor, Action.HOST_WRITE)
    rows = _rows(body.csv)
    succeeded, failed = [], {}
    whole = await db.begin_nested()
    for number, cells in rows:
        try:
            row = await entries.make(db, actor=actor, body=_host(cells))
        except (Invalid, NameTaken) as error:
            failed[str(number)] = error.detail
        else:
            succeeded.append(row.name)
    await (whole.rollback() if body.dry_run else whole.commit())
    audit.note(db, dry_run=body.dry_run, added=len(succeeded), failed=len(failed))
    return BatchResult(succeeded=succeeded, failed=failed)


def _rows(text: str) -> list[tuple[int, dict[str | None, str | None]]]:
    """The rows with their line numbers; empty ones are left out."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    try:
        head = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = head
        unknown = sorted(set(head) - set(COLUMNS))
        if unknown or "name" not in head or len(set(head)) < len(head):
            what = f"These columns are not known: {', '.join(unknown)}." if unknown else "Each column once."
            raise Invalid(
                what if "name" in head else "The first line must name the columns, with name among them.",
                hint=f"Columns: {', '.join(COLUMNS)}.",
                data={"unknown": unknown, "columns": list(COLUMNS)},
            )
        rows = [(reader.line_num, cells) for cells in reader if any(cells.values())]
    except csv.Error as error:
        raise Invalid(f"Line {reader.line_num} is not CSV: {error}.") from error
    if len(rows) > MAX_ROWS:
        raise Invalid(f"{len(rows)} rows; one import takes {MAX_ROWS}.", hint="Split the file.")
    return rows


def _host(cells: dict[str | None, str | None]) -> HostCreate:
    """The row as a request. Raises :class:`Invalid` with what is wrong with it."""
    if None in cells or None in cells.values():
        raise Invalid("It has more or fewer cells than the first line.")
    values = {name: spreadsheets.unmarked((cell or "").strip()) for name, cell in cells.items()}
    labels = [one.strip().partition("=") for one in values.pop("labels", "").split(";") if one.strip()]
    if any(not equals for _, equals, _ in labels):
        raise Invalid("labels: not key=value;key=value")
    try:
        return HostCreate.model_validate(
            {name: value for name, value in values.items() if value}
            | {"labels": {key: value for key, _, value in labels}}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
