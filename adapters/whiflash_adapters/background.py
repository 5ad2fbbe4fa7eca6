"""A blocking iterator on a thread of its own, read from asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    value: T


async def from_thread(make: Callable[[threading.Event], Iterator[T]]) -> AsyncGenerator[T, None]:
    """Yield what `make(abandoned)` yields; one thread runs it from beginning to end.

    Whoever stops reading (break, cancellation) stops the thread at its next item, or sooner if
    the iterator looks at `abandoned`, and it is closed before control returns: it may hold an
    engine.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    arrived: asyncio.Queue[_Item[T] | BaseException | None] = asyncio.Queue()
    abandoned = threading.Event()

    def tell(item: _Item[T] | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def work() -> None:
        try:
            read()
            tell(None)
        except BaseException as error:  # raised again where it is awaited
            tell(error)
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set_result, None)

    def read() -> None:
        for value in make(abandoned):
            if abandoned.is_set():
                break
            tell(_Item(value))

    # not asyncio's pool: it has a few threads only, which tools and name lookups need as well
    caller = contextvars.copy_context()
    threading.Thread(target=caller.run, args=(work,), name="whiflash", daemon=True).start()
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.value
    finally:
        abandoned.set()
        await asyncio.shield(ended)
