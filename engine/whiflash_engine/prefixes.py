"""Recent sequences, kept so that a prompt which begins like one of them need not run again.

An agent's next turn begins with all of the last one: prompt, answer, then the tool's result.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from whiflash_engine.config import require
from whiflash_engine.lookup import common
from whiflash_engine.sequence import SequenceState

# Fewer shared tokens are not worth giving up what another conversation has left.
_WORTH = 16


class PrefixStore:
    """Finished sequences, the most recent last. Several threads may use it at once.

    Bounded by bytes: the least recently used goes first. A sequence that is taken is not in
    the store while it is worked on, so that nobody else can touch it.
    """

    def __init__(self, limit: int) -> None:
        """limit: bytes; 0 keeps nothing."""
        require(limit >= 0, "reuse_bytes", limit, "must be 0 (off) or positive")
        self._limit = limit
        self._kept: list[SequenceState] = []
        self._given = deque[SequenceState]()
        self._lock = threading.Lock()

    def take(self, prompt: Sequence[int]) -> SequenceState | None:
        """The sequence that shares most with `prompt`.

        None if that is little, or less than half of what the sequence holds: it is then the
        beginning of another conversation, and this one may yet go on.
        """
        with self._lock:
            self._receive()
            shared = [common(sequence.tokens, prompt) for sequence in self._kept]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or shared[best] < _WORTH:
                return None
            if 2 * shared[best] < len(self._kept[best].tokens):
                return None
            return self._kept.pop(best)

    def give(self, sequence: SequenceState) -> None:
        """Keep a sequence that nobody works on any more, unless it alone is over the limit or
        nothing of it has been run.

        Never waits: an abandoned generator is closed wherever the garbage collector runs, even
        inside `take` of the same thread.
        """
        known = sequence.cache.length
        if sequence.nbytes > self._limit or not known:
            return
        del sequence.tokens[known + 1 :]  # of a prompt that was cancelled before it was run
        self._given.append(sequence)
        if self._lock.acquire(blocking=False):
            try:
                self._receive()
            finally:
                self._lock.release()

    def _receive(self) -> None:
        """Take in what was given, under the lock, and let go of what is too much."""
        while self._given:
            self._kept.append(self._given.popleft())
        held = [kept.nbytes for kept in self._kept]
        while sum(held) > self._limit:
            del self._kept[0], held[0]
