"""What the loop needs from a target: tokens in, logits and features out.

A target holds weights and nothing of a sequence; what it must remember of one lives in a
`TargetCache` that the sequence owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from whiflash_engine.config import ModelConfig


class TargetCache(Protocol):
    """The target's KV of one sequence."""

    @property
    def length(self) -> int:
        """Positions stored: 0..length-1."""
        ...

    @property
    def nbytes(self) -> int:
        """What it holds in memory, about."""
        ...

    def crop(self, length: int) -> None:
        """Forget positions >= length. Absolute and idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """One pass over n tokens.

    logits: (r, vocab) float32, for the last r rows that were asked for.
    features: (n, taps * hidden), the residual stream at the tapped boundaries, concatenated
        in the order of `Target.taps`; the pass's own dtype.
    hidden: (r, hidden), final hidden state after the last norm, for the rows of `logits`.
    """

    logits: Tensor
    features: Tensor
    hidden: Tensor


class Target(Protocol):
    """The model whose text the user gets."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def precision(self) -> str:
        """Of its products: the dtype's name, or "int8"."""
        ...

    @property
    def taps(self) -> tuple[int, ...]:
        """Boundary indices k: features are the stream after k decoder layers
        (`hidden_states[k]` of transformers; 0 is the embedding)."""
        ...

    def new_cache(self, capacity: int) -> TargetCache:
        """An empty cache with room for `capacity` positions; it grows if need be."""
        ...

    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        """Run `tokens` at positions cache.length.. and append them to the cache.

        rows: how many of the last tokens want logits, 0..len(tokens).
        """
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """(n,) int64 -> (n, hidden): the input embeddings, which drafters share."""
        ...

    @property
    def embedding(self) -> Tensor | None:
        """(vocab, hidden): what `embed` gives the rows of, None if it makes more of them."""
        ...

    def head_rows(self, ids: Tensor | None) -> Tensor:
        """The output projection, (vocab, hidden), or only its rows `ids`; drafters share it."""
        ...
