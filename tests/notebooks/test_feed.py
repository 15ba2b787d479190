"""When the server is asked, and when not. The clock is the test's; nothing waits on real time."""

from __future__ import annotations

import queue

from remotegpu_notebooks.feed import LONGEST_PAUSE_S, PATIENCE_S, Feed
from remotegpu_notebooks.formatting import Reading

SOON_S = 10


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ScriptedSource:
    """Answers with the next reading, and the last one for ever."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = list(readings) or [Reading(age_s=0.0)]
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]


class SourceThatBreaks:
    def read(self) -> Reading:
        raise RuntimeError("a fault of ours")


def test_thread_ends_when_the_last_card_is_gone() -> None:
    feed = Feed(ScriptedSource(), clock=Clock())
    first, second = queue.Queue[Reading](), queue.Queue[Reading]()
    watchers = [feed.watch(first.put), feed.watch(second.put)]
    first.get(timeout=SOON_S)
    feed.unwatch(watchers[0])
    assert not feed.idle.is_set()
    feed.unwatch(watchers[1])
    assert feed.idle.wait(SOON_S)


def test_silent_browser_pauses_the_feed_and_a_ping_resumes_it() -> None:
    clock, got = Clock(), queue.Queue[Reading]()
    feed = Feed(ScriptedSource(), clock=clock)
    watcher = feed.watch(got.put)
    got.get(timeout=SOON_S)
    clock.now += PATIENCE_S + 1
    feed.wake()
    assert feed.idle.wait(SOON_S)
    while not got.empty():
        got.get()
    feed.seen(watcher)
    got.get(timeout=SOON_S)
    assert not feed.idle.is_set()
    feed.stop()


def test_busy_kernel_that_hears_no_ping_keeps_the_card_alive() -> None:
    clock, got = Clock(), queue.Queue[Reading]()
    feed = Feed(ScriptedSource(), clock=clock, busy=lambda: True)
    feed.watch(got.put)
    for _ in range(3):
        got.get(timeout=SOON_S)
        clock.now += 10 * PATIENCE_S
        feed.wake()
    got.get(timeout=SOON_S)
    assert not feed.idle.is_set()
    feed.stop()


def test_failures_lengthen_the_pause_up_to_a_limit_and_success_resets_it() -> None:
    feed = Feed(ScriptedSource())
    pauses = []
    for failures in range(7):
        feed._failures = failures
        pauses.append(feed._pause_s())
    assert pauses == [2.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_server_that_names_a_pause_is_obeyed() -> None:
    source = ScriptedSource()
    source.retry_after_s = 12.0  # type: ignore[attr-defined]
    assert Feed(source)._pause_s() == 12.0


def test_source_that_breaks_is_said_in_the_card_and_asked_again() -> None:
    got = queue.Queue[Reading]()
    feed = Feed(SourceThatBreaks(), clock=Clock())
    feed.watch(got.put)
    assert got.get(timeout=SOON_S).error == "The dashboard failed: RuntimeError."
    feed.wake()
    assert got.get(timeout=SOON_S).error
    feed.stop()
    assert feed.idle.wait(SOON_S)


def test_card_that_cannot_be_updated_is_dropped_and_the_others_go_on() -> None:
    def broken(_reading: Reading) -> None:
        raise RuntimeError("comm is closed")

    got = queue.Queue[Reading]()
    feed = Feed(ScriptedSource(), clock=Clock())
    feed.watch(broken)
    feed.watch(got.put)
    got.get(timeout=SOON_S)
    feed.wake()
    got.get(timeout=SOON_S)
    assert len(feed._watchers) == 1
    feed.stop()


def test_stop_twice_is_harmless_and_final() -> None:
    source = ScriptedSource()
    feed = Feed(source)
    feed.stop()
    feed.stop()
    feed.watch(lambda _reading: None)
    assert feed.idle.is_set()
    assert source.reads == 0
