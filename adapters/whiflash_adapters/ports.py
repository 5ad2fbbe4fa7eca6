"""What the adapters need from an engine, so that anything of that shape will do."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from whiflash_engine.config import RouterConfig, SamplingConfig, Span
from whiflash_engine.events import Round

if TYPE_CHECKING:  # torch stands behind both
    from transformers import PreTrainedTokenizerBase

    from whiflash_engine.constraint import Constraint


class TokenEngine(Protocol):
    """Tokens in, rounds out (`whiflash_agents.Engine` is one)."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def context_length(self) -> int: ...

    @property
    def model_name(self) -> str: ...

    def generate(
        self,
        token_ids: Sequence[int],
        *,
        sampling: SamplingConfig,
        constraint: Constraint | None = None,
        router: RouterConfig | None = None,
        span: Span = "text",
        cancelled: threading.Event | None = None,
    ) -> Iterator[Round]: ...

    def grammar(self, lark: str, signposts: Sequence[str]) -> Constraint: ...
