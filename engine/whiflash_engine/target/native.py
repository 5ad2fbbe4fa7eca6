"""The native target: a `Decoder` on the cache of a sequence.

A pass runs as it comes, or on a GPU, where it has few rows, as one of a few fixed shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.config import ModelConfig, require
from whiflash_engine.devices import ROUNDED, dtype_name
from whiflash_engine.graphs import Capture
from whiflash_engine.layers import MOST_ROWS, Rope, Sight, attention
from whiflash_engine.linear import rounds
from whiflash_engine.target.base import TargetCache, TargetOutput
from whiflash_engine.target.decoder import Decoder
from whiflash_engine.target.fixed import FixedPasses

# Longer inputs are run in pieces: the mask of a piece stays small, whatever the prompt.
_PIECE = MOST_ROWS


class NativeTarget:
    """Implements `Target`. Holds weights, nothing of a sequence.

    weights, taps, rounded: of `Decoder`.
    capture: makes passes of fixed shape cheaper to start; None runs every pass as it comes.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        taps: tuple[int, ...] = (),
        *,
        rounded: bool = False,
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.taps = taps
        self._decoder = Decoder(config, weights, taps, rounded=rounded)
        self.precision = ROUNDED if rounded else dtype_name(self.dtype)
        able = not rounded or rounds(self.device, self.dtype)
        require(able, "rounded", rounded, "has no kernel here")
        self._rope = Rope(config.rope, config.head_dim, self.dtype, self.device)
        self._fixed = capture and FixedPasses(self._decoder, self._rope, capture)

    @property
    def device(self) -> torch.device:
        return self._decoder.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self._decoder.embedding.dtype

    def new_cache(self, capacity: int) -> KVCache:
        c = self.config
        return KVCache(c.num_layers, c.num_kv_heads, c.head_dim, capacity, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        if not isinstance(cache, KVCache):
            raise TypeError(f"a cache of this target was expected, not {type(cache).__name__}")
        cache.reserve(len(tokens))
        if self._fixed and self._fixed.takes(len(tokens), cache):
            return self._fixed.forward(tokens, cache, rows=rows)
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
        features = self._decoder.features(len(tokens))
        last = self._decoder.embedding[:0].float()
        for start in range(0, len(tokens), _PIECE):
            piece = ids[start : start + _PIECE]
            wanted = min(max(rows - (len(tokens) - start - len(piece)), 0), len(piece))
            x = self._run(piece, cache, features[start:][:_PIECE], wanted)
            cache.advance(len(piece))
            last = torch.cat((last, x))
        logits, hidden = self._decoder.head(last)
        return TargetOutput(logits, features, hidden)

    def _run(self, ids: Tensor, cache: KVCache, features: Tensor, rows: int) -> Tensor:
        """What the layers make of the last `rows`. Fills features."""
        n, table = len(ids), self._rope.table(cache.length, len(ids))
        fast = self._decoder.fast(ids, table, cache, features, rows)
        if fast is not None:
            return fast
        sight = Sight(window=self.config.sliding_window)
        return self._decoder(ids, _Own(*table, sight, *cache.places(n)), features)[n - rows :]

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self._decoder.embedding)

    @property
    def embedding(self) -> Tensor:
        return self._decoder.embedding

    def head_rows(self, ids: Tensor | None) -> Tensor:
        weight = self._decoder.head_weight
        return weight if ids is None else weight[ids]


@dataclass(frozen=True, slots=True)
class _Own:
    """The sequence's own cache, as the memory of a pass. new, held: `KVCache.places`."""

    cos: Tensor
    sin: Tensor
    sight: Sight
    new: Sequence[Tensor]
    held: Sequence[Tensor]

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv_heads = k.shape[1]
        self.new[index][:kv_heads].copy_(k.transpose(0, 1))
        self.new[index][kv_heads:].copy_(v.transpose(0, 1))
        keys, values = self.held[2 * index : 2 * index + 2]
        return attention(q, keys, values, self.sight)
