"""The passes that judge rules: signals that are cheap often, the others once a minute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from sqlalchemy import select, update

from remotegpu_server.alerts import judging
from remotegpu_server.alerts.signals import SIGNALS, Reading, View
from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work, by_itself

OFTEN_S, SELDOM_S = 5.0, 60.0
_NOT_READ = "Its signal could not be read; the server's log says why."
_row, _alert = tables.AlertRule, tables.Alert


def _pass(name: str, every_s: float) -> Callable[[Work], Awaitable[None]]:
    async def evaluate(work: Work) -> None:
        """Each signal is read once, and each rule that has something to say is judged in a transaction of
        its own; one that fails is counted, says so, and holds up no other.
        """
        signals = [one.name for one in SIGNALS.values() if one.every_s == every_s]
        async with work.session() as db:
            rules = list(await db.scalars(select(_row).where(_row.enabled, _row.signal.in_(signals))))
            readings = await _read(View(db, work.settings), name, {rule.signal for rule in rules})
            live = set(
                await db.scalars(select(_alert.rule_id).where(_alert.status.in_(["pending", "firing"])))
            )
        for rule in rules:
            with by_itself(name, rule.name):
                found = readings.get(rule.signal)
                if found is None:
                    await _note(work, rule, _NOT_READ)
                elif rule.last_error or rule.id in live or judging.holds(rule, found):
                    async with work.session() as db:
                        await judging.judge(db, rule_id=rule.id, readings=found)

    return evaluate


async def _read(view: View, name: str, signals: set[str]) -> dict[str, Sequence[Reading]]:
    """What could be read, by signal."""
    readings: dict[str, Sequence[Reading]] = {}
    for signal in sorted(signals):
        with by_itself(name, signal):
            async with view.db.begin_nested():
                readings[signal] = await SIGNALS[signal].read(view)
    return readings


async def _note(work: Work, rule: tables.AlertRule, error: str) -> None:
    if rule.last_error != error:
        async with work.session() as db:
            await db.execute(update(_row).where(_row.id == rule.id).values(last_error=error))


LOOP = Loop(name="alerts", every_s=OFTEN_S, run=_pass("alerts", OFTEN_S), wake="alerts")
SELDOM = Loop(name="alerts-seldom", every_s=SELDOM_S, run=_pass("alerts-seldom", SELDOM_S))
