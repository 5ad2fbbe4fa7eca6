"""Time spent in the engine, not in whoever reads the stream."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from whiflash_engine.events import Round


class Stopwatch:
    """seconds: in all. first: those until the first round."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.first = 0.0

    def timed(self, rounds: Iterator[Round]) -> Iterator[Round]:
        while True:
            start = perf_counter()
            round_ = next(rounds, None)
            self.seconds += perf_counter() - start
            if round_ is None:
                return
            self.first = self.first or self.seconds
            yield round_
