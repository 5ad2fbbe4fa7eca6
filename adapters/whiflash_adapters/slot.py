"""The engine behind a chat model, once somebody needs it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.prompt import Prompter

_log = logging.getLogger("whiflash_agents")


class Slot:
    """Loads at most once, whoever asks; shared by all copies of a model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: TokenEngine | None = None
        self._prompters: dict[str | None, Prompter] = {}

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
    # unpacking, are for those who listen.
    _log.log(logging.WARNING if "fetching" in said else logging.INFO, "%s", said)
