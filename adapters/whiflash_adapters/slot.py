"""The engine behind chat models, once somebody needs it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.prompt import Prompter

Origin = tuple[object, ...]
"""What an engine is made of: equal for models that may share one."""

_log = logging.getLogger("whiflash_agents")
_finding = threading.Lock()
_slots: WeakValueDictionary[Origin, Slot] = WeakValueDictionary()


class Slot:
    """Loads at most once, whoever asks; shared by all models of one origin.

    `Slot.of` finds it. It lives, and its engine with it, as long as any model that holds it: a
    model takes its slot when it is made, so that what loads for a short-lived copy stays.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self._lock = threading.Lock()
        self._engine: TokenEngine | None = None
        self._prompters: dict[str | None, Prompter] = {}

    @staticmethod
    def of(origin: Origin) -> Slot:
        with _finding:
            slot = _slots.get(origin)
            if slot is None:
                slot = _slots[origin] = Slot(origin)
            return slot

    def __reduce__(self) -> tuple[Callable[[Origin], Slot], tuple[Origin]]:
        """Copies are the slot itself; in another process it is empty, to load when asked."""
        return Slot.of, (self.origin,)

    def get(
        self, load: Callable[[], TokenEngine], tool_format: str | None
    ) -> tuple[TokenEngine, Prompter]:
        with self._lock:
            if self._engine is None:
                self._engine = load()
            if tool_format not in self._prompters:  # a copy of a model may have another
                self._prompters[tool_format] = Prompter(self._engine.tokenizer, tool_format)
            return self._engine, self._prompters[tool_format]


def tell(said: str) -> None:
    """What loading says, on the library's logger."""
    # Unless logging is set up otherwise, Python shows warnings on stderr and nothing below
    # them: a first answer that waits for a download should not be silent. The steps of it, and
    # unpacking, are for those who listen. Loading reports in words alone; the tests hold those of
    # each download to this one.
    _log.log(logging.WARNING if "fetching" in said else logging.INFO, "%s", said)
