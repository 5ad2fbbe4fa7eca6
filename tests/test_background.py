"""Blocking iterators read from asyncio: order, errors, and who is left behind."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fake_engine import FakeEngine
from whiflash_adapters.background import from_thread
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.generation import Trace
from whiflash_engine.engine import Engine

WHO = contextvars.ContextVar("who", default="nobody")


def test_everything_arrives_in_order_with_the_callers_context() -> None:
    async def read() -> list[object]:
        WHO.set("caller")
        return [x async for x in from_thread(lambda _: iter([1, 2, WHO.get()]))]

    assert asyncio.run(read()) == [1, 2, "caller"]


def test_errors_are_raised_where_they_are_awaited() -> None:
    def broken(_: threading.Event) -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    async def read() -> list[int]:
        got = []
        with pytest.raises(ValueError, match="broken"):
            async for x in from_thread(broken):
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
        stream = from_thread(endless)
        async for _ in stream:
            break
        await stream.aclose()
        assert endless.closed.is_set()

    asyncio.run(read())


def test_answers_leave_the_pool_of_asyncio_alone() -> None:
    async def crowd() -> str:
        streams = [from_thread(Endless()) for _ in range(40)]
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
        async for _ in from_thread(endless):
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
