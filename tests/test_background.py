"""Blocking iterators read from asyncio: order, errors, and who is left behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.fake_engine import FakeEngine
from whiflash_adapters import background
from whiflash_adapters.background import FromThread
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.generation import Trace
from whiflash_engine.config import ArmName
from whiflash_engine.engine import Engine
from whiflash_engine.events import FinishReason, Round

WHO = contextvars.ContextVar("who", default="nobody")


def test_everything_arrives_in_order_with_the_callers_context() -> None:
    async def read() -> list[object]:
        WHO.set("caller")
        return [x async for x in FromThread(lambda _: iter([1, 2, WHO.get()]))]

    assert asyncio.run(read()) == [1, 2, "caller"]


def test_errors_are_raised_where_they_are_awaited() -> None:
    def broken(_: threading.Event) -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    async def read() -> list[int]:
        got = []
        with pytest.raises(ValueError, match="broken"):
            async for x in FromThread(broken):
                got.append(x)
        return got

    assert asyncio.run(read()) == [1]


class Endless:
    """Yields for ever, slowly, and says when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __call__(self, _: threading.Event) -> Iterator[int]:
        try:
            while True:
                time.sleep(0.005)
                yield 1
        finally:
            self.closed.set()


def test_whoever_stops_reading_closes_the_iterator() -> None:
    endless = Endless()

    async def read() -> None:
        stream = FromThread(endless)
        async for _ in stream:
            break
        await stream.aclose()
        assert endless.closed.is_set()

    asyncio.run(read())


def test_whoever_lets_go_of_it_stops_the_thread() -> None:
    endless = Endless()

    async def read() -> None:
        async for _ in FromThread(endless):
            break
        assert await asyncio.to_thread(endless.closed.wait, 5)

    asyncio.run(read())


def test_what_is_over_stays_over() -> None:
    async def read() -> list[int]:
        stream = FromThread(lambda _: iter([1]))
        got = [x async for x in stream]
        await stream.aclose()
        await stream.aclose()
        return got + [x async for x in stream]

    async def closed_early() -> list[int]:
        stream = FromThread(lambda _: iter([1, 2, 3]))
        await anext(stream)
        await stream.aclose()
        return [x async for x in stream]

    assert asyncio.run(read()) == [1]
    assert asyncio.run(closed_early()) == []


def test_nobody_is_told_anything_once_the_loop_is_closed() -> None:
    endless = Endless()
    loop = asyncio.new_event_loop()

    async def begin() -> FromThread[int]:
        stream = FromThread(endless)
        await anext(stream)
        return stream

    stream = loop.run_until_complete(begin())
    loop.close()
    assert endless.closed.wait(5), "and the thread holds nothing any more"
    del stream


class Stuck(FakeEngine):
    """Says a little, and then takes its time, whoever may have gone meanwhile."""

    def __init__(self) -> None:
        super().__init__("one two three", size=1)
        self.go_on = threading.Event()

    def _rounds(
        self, ids: list[int], start: int, reason: FinishReason, arms: Sequence[ArmName],
        top: int | None,
    ) -> Iterator[Round]:  # fmt: skip
        rounds = super()._rounds(ids, start, reason, arms, top)
        yield from (next(rounds) for _ in range(4))
        self.go_on.wait(1)


@pytest.mark.parametrize("turns", range(6))
def test_asyncio_has_nothing_to_say_about_a_break(
    turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Stuck()
    chat = ChatWhiFlash(engine=engine)

    async def leave() -> None:
        async for _ in chat.astream("hi"):
            break
        for _ in range(turns):  # each leaves asyncio at another point of its clearing up
            await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, "asyncio"):
        asyncio.run(leave())
        engine.go_on.set()
        gc.collect()
    assert not caplog.messages


PROGRAM = """
import asyncio, atexit, threading
from collections.abc import Iterator
from whiflash_adapters import background

go = threading.Event()

def slow(abandoned: threading.Event) -> Iterator[int]:
    try:
        yield 1
        abandoned.wait()
        go.wait()
        threading.Event().wait(0.1)
    finally:
        print("closed")

async def leave() -> None:
    async for _ in background.FromThread(slow):
        break

asyncio.run(leave())
"""


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("atexit.register(go.set)", "closed"),  # once the interpreter is on its way out
        ("background._PATIENCE = 0.05", ""),
    ],
)
def test_the_process_waits_for_a_thread_but_not_for_ever(rest: str, said: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM + rest],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert (ran.stdout.strip(), ran.stderr) == (said, "")


def test_the_end_of_the_process_tells_all_and_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told, go = threading.Barrier(21), threading.Event()

    def stuck(abandoned: threading.Event) -> Iterator[int]:
        yield 1
        abandoned.wait()
        told.wait(10)
        go.wait()

    async def leave() -> list[FromThread[int]]:
        streams = [FromThread(stuck) for _ in range(20)]
        for stream in streams:
            await anext(stream)
        return streams

    monkeypatch.setattr(background, "_PATIENCE", 0.1)
    streams = asyncio.run(leave())  # held: nobody else tells them
    ending = threading.Thread(target=background._see_out)
    begun = time.perf_counter()
    ending.start()
    told.wait(10)
    ending.join()
    assert time.perf_counter() - begun < 1
    go.set()
    del streams


def test_answers_leave_the_pool_of_asyncio_alone() -> None:
    async def crowd() -> str:
        streams = [FromThread(Endless()) for _ in range(40)]
        for stream in streams:
            await anext(stream)
        said = await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5)
        for stream in streams:
            await stream.aclose()
        return said

    assert asyncio.run(crowd()) == "free"


def test_cancellation_closes_the_iterator() -> None:
    endless = Endless()

    async def read() -> None:
        async for _ in FromThread(endless):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert endless.closed.is_set()

    asyncio.run(cancel())


def test_the_loop_goes_on_while_the_engine_works() -> None:
    chat = ChatWhiFlash(engine=FakeEngine("one two three four five six seven"))

    async def both() -> tuple[int, str]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        text = "".join([chunk.text async for chunk in chat.astream("hi")])
        ticking.cancel()
        return ticks, text

    ticks, text = asyncio.run(both())
    assert ticks > 1 and text == chat.invoke("hi").text


def test_many_at_once_say_what_each_says_alone() -> None:
    chat = ChatWhiFlash(engine=FakeEngine("hello there"))

    async def all_of_them() -> list[str]:
        answers = await asyncio.gather(*(chat.ainvoke(f"{i}") for i in range(12)))
        return [answer.text for answer in answers]

    assert asyncio.run(all_of_them()) == ["hello there"] * 12


def test_an_answer_that_waits_for_the_engine_can_be_left(engine: Engine) -> None:
    heard: list[Trace] = []
    chat = ChatWhiFlash(engine=engine, on_trace=heard.append)

    async def leave() -> None:
        task = asyncio.create_task(chat.ainvoke("hi"))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.sleep(0)
        engine._turn.release()  # the other answer is done with its round
        with pytest.raises(asyncio.CancelledError):
            await task

    engine._turn.acquire()
    asyncio.run(leave())
    assert not heard and not engine._prefixes._kept
