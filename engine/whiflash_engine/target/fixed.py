"""The target's passes of fixed shape.

A pass over n tokens fills up to the next of `WIDTHS` with its last token. Those rows stand behind
the others, which do not see them; what they write is never copied to the sequence's cache. Nearly
all passes of decoding have one width, so that a row is rounded alike whatever is drafted with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.graphs import Capture
from whiflash_engine.layers import Rope, Sight
from whiflash_engine.stage import Stage
from whiflash_engine.staged import Staged, StagedWork
from whiflash_engine.target.base import TargetOutput
from whiflash_engine.target.decoder import Decoder

WIDTHS: Final = (16, 64)
"""Rows. To a GPU 16 are as good as one: the weights are read once, and attention takes 64 rows of
a key head at a time. 64 are for what a grammar forces, and for short turns."""


class FixedPasses:
    """Several threads may use it at once, but for one cache each."""

    def __init__(self, decoder: Decoder, rope: Rope, capture: Capture) -> None:
        c, table = decoder.config, decoder.embedding
        stage = Stage(c.num_layers, c.num_kv_heads, c.head_dim, table.dtype, table.device)
        sights = [Sight(window=c.sliding_window)] * c.num_layers
        group = c.num_heads // c.num_kv_heads
        run = partial(_run, decoder)
        self._work = StagedWork(stage, rope, sights, group, WIDTHS[-1], capture, run)

    def takes(self, n: int, cache: KVCache) -> bool:
        """Whether a pass over n tokens more is one of those."""
        return 0 < n <= WIDTHS[-1] and self._work.has_room(cache)

    def forward(self, tokens: Sequence[int], cache: KVCache, *, rows: int) -> TargetOutput:
        """As `Target.forward`, for a cache that has room."""
        n = len(tokens)
        width = next(width for width in WIDTHS if width >= n)
        with self._work.lock:
            padded = [*tokens, *[tokens[-1]] * (width - n)]
            logits, features, hidden = self._work(cache, padded)
            self._work.stage.leave(cache, n)
            asked = slice(n - rows, n)
            # the next pass overwrites them
            return TargetOutput(logits[asked].clone(), features[:n].clone(), hidden[asked].clone())


def _run(decoder: Decoder, ids: Tensor, memory: Staged) -> tuple[Tensor, ...]:
    """Logits, features and hidden of `TargetOutput`, of all rows."""
    features = decoder.features(len(ids))
    logits, hidden = decoder.head(decoder(ids, memory, features))
    return logits, features, hidden
