"""Event streams: nothing is missed and nothing is cut in two."""

from __future__ import annotations

import json
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import remotegpu
from remotegpu import _sse

from .conftest import TOKEN
from .samples import event
from .scripted_server import ScriptedServer, answers, refuses, streams


def message(position: str, **fields: object) -> bytes:
    body = json.dumps(event(position, **fields), ensure_ascii=False)
    return f"id: {position}\nevent: environment.status\ndata: {body}\n\n".encode()


def test_stream_goes_on_where_it_was_cut(client: remotegpu.Client, server: ScriptedServer) -> None:
    second = message("2")
    server.play(
        streams(b": hello\n\n", message("1"), second[:30]),  # cut in the middle of the second
        refuses(503, "unavailable"),
        streams(second, message("3")),
    )
    found = [one.id for one in islice(client.events.watch(subject_type="environment"), 3)]
    assert found == ["1", "2", "3"]
    assert [seen.headers.get("last-event-id") for seen in server.seen] == [None, "1", "1"]
    assert all(seen.headers["accept"] == "text/event-stream" for seen in server.seen)


async def test_async_stream_goes_on_where_it_was_cut(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remotegpu._protocol.Reconnects.FIRST_PAUSE_S", 0.0)
    server.play(streams(message("1")), streams(message("2"), cut=False))
    found: list[str] = []
    async with remotegpu.AsyncClient(server.url, TOKEN) as client:
        stream = client.events.watch(after="0")
        async for one in stream:
            found.append(one.id)
            if len(found) == 2:
                break
        await stream.aclose()
    assert found == ["1", "2"]
    assert [seen.headers["last-event-id"] for seen in server.seen] == ["0", "1"]


def test_stream_ends_at_an_answer_that_will_not_change(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(streams(message("1")), refuses(401, "token_invalid"))
    stream = client.events.watch()
    assert next(stream).id == "1"
    with pytest.raises(remotegpu.TokenInvalid):
        next(stream)


def test_stream_gives_up_when_nothing_comes_for_too_long(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(refuses(503, "unavailable"))
    with pytest.raises(remotegpu.Unavailable):
        next(client.events.watch(give_up_after_s=0))


def test_answer_that_is_no_stream_is_refused(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(answers({"items": [], "next_cursor": None}))
    with pytest.raises(remotegpu.UnexpectedAnswer, match="event stream"):
        next(client.events.watch())


TEXT = "line\u2028separator \x0c\x85 snow \u2603"


@given(cuts=st.lists(st.integers(0, 700), max_size=12), crlf=st.booleans())
def test_messages_do_not_depend_on_how_the_bytes_arrive(cuts: list[int], crlf: bool) -> None:
    whole = b": ping\n\n" + message("1", message=TEXT) + b"data: a\ndata: b\n\n" + message("2")
    if crlf:
        whole = whole.replace(b"\n", b"\r\n")
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    decoder = _sse.Decoder()
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    messages = [found for piece in pieces for found in decoder.feed(piece)]
    assert [found.id for found in messages] == ["1", "1", "2"]
    assert json.loads(messages[0].data)["message"] == TEXT
    assert messages[1].data == b"a\nb"


def test_message_without_end_is_refused() -> None:
    decoder = _sse.Decoder()
    with pytest.raises(remotegpu.UnexpectedAnswer):
        for _ in range(100):
            list(decoder.feed(b"x" * 2**16))
