"""A blocking iterator on a thread of its own, read from asyncio."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds that the end of the process waits for its threads. A round takes less; the fetching of
a model takes more, and is not waited for."""


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    value: T


class FromThread(AsyncIterator[T]):
    """What `make(abandoned)` yields; one thread runs it from beginning to end.

    Whoever stops reading stops the thread at its next item, or sooner if the iterator looks at
    `abandoned`. When `aclose` returns, or a cancelled read, the iterator is closed: it may hold
    an engine. A `break` only lets go of it, and does not wait.

    No async generator: asyncio closes those that were let go of in tasks of its own, and
    complains when one is inside another, or when the loop ends before they do.
    """

    def __init__(self, make: Callable[[threading.Event], Iterator[T]]) -> None:
        self._abandoned = threading.Event()
        self._arrived: asyncio.Queue[_Item[T] | BaseException | None] = asyncio.Queue()
        self._ended = asyncio.get_running_loop().create_future()
        work = _work(make, self._abandoned, self._arrived, self._ended)
        # not asyncio's pool: it has a few threads only, which tools and name lookups need as well
        caller = contextvars.copy_context()
        _Thread(lambda: caller.run(work), self._abandoned).start()

    async def __anext__(self) -> T:
        if self._abandoned.is_set():
            raise StopAsyncIteration
        try:
            item = await self._arrived.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(item, _Item):
            return item.value
        self._abandoned.set()
        raise StopAsyncIteration if item is None else item

    async def aclose(self) -> None:
        self._abandoned.set()
        await asyncio.shield(self._ended)

    def __del__(self) -> None:
        self._abandoned.set()


def _work(
    make: Callable[[threading.Event], Iterator[T]],
    abandoned: threading.Event,
    arrived: asyncio.Queue[_Item[T] | BaseException | None],
    ended: asyncio.Future[None],
) -> Callable[[], None]:
    """Runs the iterator. Knows nothing of its reader, who could not be let go of otherwise."""
    tell = ended.get_loop().call_soon_threadsafe

    def end(error: BaseException | None) -> None:
        arrived.put_nowait(error)
        ended.set_result(None)

    def work() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            try:
                for value in make(abandoned):
                    if abandoned.is_set():
                        break
                    tell(arrived.put_nowait, _Item(value))
            except BaseException as error:  # raised again where it is awaited
                tell(end, error)
            else:
                tell(end, None)

    return work


class _Thread(threading.Thread):
    """One that the end of the process waits for, though not for ever."""

    def __init__(self, work: Callable[[], None], abandoned: threading.Event) -> None:
        super().__init__(target=work, name="whiflash", daemon=True)
        self.abandoned = abandoned


def _see_out() -> None:
    """Native code that comes back to an interpreter which is gone takes the process down with it.
    All are told before any is waited for."""
    running = [one for one in threading.enumerate() if isinstance(one, _Thread) and one.is_alive()]
    for thread in running:
        thread.abandoned.set()
    deadline = monotonic() + _PATIENCE
    for thread in running:
        thread.join(max(0.0, deadline - monotonic()))


atexit.register(_see_out)
