"""The diffusion drafter: DFlash (arXiv 2602.06036), one parallel block per round.

The block is [bonus, MASK, MASK, ...] at the positions m, m+1, ...; output row k predicts the
token AT row k. The target's features reach every layer as a stream of keys and values:

    c = hidden_norm(fc(taps))                       context, positions 0..m-1
    q = q_norm(q_proj(a)),  k = k_norm(k_proj([c ; a])),  v = v_proj([c ; a])

with a the normed block rows. Context rows have no queries and pass no MLP, so catching up is
KV-only by construction: the k and v of all layers are one product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.checkpoints.dflash import DFlashConfig
from whiflash_engine.config import require
from whiflash_engine.drafters.base import Chooser, DraftState, Proposal, certain
from whiflash_engine.drafters.dflash_block import DFlashBlock, run_block
from whiflash_engine.drafters.ending import Ending, chances
from whiflash_engine.drafters.taps import Taps, embedding
from whiflash_engine.drafters.vocabulary import ContextWords, DraftHead
from whiflash_engine.features import FeatureLog
from whiflash_engine.graphs import Capture
from whiflash_engine.layers import RMSNorm, Rope, Sight, attention, rotate
from whiflash_engine.linear import Linear
from whiflash_engine.stage import Stage
from whiflash_engine.staged import StagedWork
from whiflash_engine.target.base import Target


class DFlashState:
    """KV of the context, all layers, and the words met in it."""

    def __init__(self, kv: KVCache, words: ContextWords) -> None:
        self.kv, self.words = kv, words

    @property
    def watermark(self) -> int:
        return self.kv.length

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes

    def crop(self, length: int) -> None:
        self.kv.crop(length)
        self.words.crop(length)


def checked_block(block: int, config: DFlashConfig) -> int:
    """ConfigError unless a block can have so many rows."""
    most = config.block_size
    require(2 <= block <= most, "diffusion_block", block, f"must lie in 2..{most}")
    return block


class DFlashDrafter:
    """Implements `Drafter`. weights: canonical names of `load_dflash`.

    block: rows of the block, bonus included; at most what the checkpoint was trained with.
    capture: makes the block's pass cheaper to start; None runs it as it comes.
    """

    def __init__(
        self,
        config: DFlashConfig,
        weights: Mapping[str, Tensor],
        target: Target,
        block: int | None = None,
        *,
        capture: Capture | None = None,
    ) -> None:
        size = config.block_size if block is None else checked_block(block, config)
        self.config = config
        self.max_draft = size - 1
        self._target = target
        self._taps = Taps(target, config.taps)
        self._hidden_norm = RMSNorm(weights["hidden_norm.weight"], config.rms_norm_eps)
        self._fc = Linear(weights["fc.weight"], rounded=True)
        prefixes = [f"layers.{i}." for i in range(config.num_layers)]
        self._context_kv = Linear(
            torch.cat([weights[f"{p}self_attn.{x}_proj.weight"] for p in prefixes for x in "kv"]),
            rounded=True,
        )
        self._block = DFlashBlock(config, weights, embedding(target, weights))
        self._head = DraftHead(target, weights)
        self._rope = Rope(config.rope, config.head_dim, target.dtype, target.device)
        self._work = capture and self._staged(capture)

    def _staged(self, capture: Capture) -> StagedWork:
        c, t, sights = self.config, self._target, self._block.sights()
        stage = Stage(c.num_layers, c.num_kv_heads, c.head_dim, t.dtype, t.device)
        group, run = c.num_heads // c.num_kv_heads, partial(run_block, self._block)
        return StagedWork(stage, self._rope, sights, group, c.block_size, capture, run)

    def new_state(self, capacity: int) -> DFlashState:
        c, t = self.config, self._target
        rows = capacity + c.block_size
        kv = KVCache(c.num_layers, c.num_kv_heads, c.head_dim, rows, t.dtype, t.device)
        return DFlashState(kv, self._head.new_words())

    @torch.inference_mode()
    def ingest(self, state: DraftState, log: FeatureLog, tokens: Sequence[int]) -> None:
        assert isinstance(state, DFlashState) and len(tokens) == log.length + 1
        state.words.learn(tokens)
        c, kv, n = self.config, state.kv, log.length - state.watermark
        if n == 0:
            return
        taps = self._taps(log.rows(state.watermark, log.length))
        context = self._hidden_norm(self._fc(taps.flatten(1)))
        fused = self._context_kv(context).view(n, c.num_layers, 2, c.num_kv_heads, c.head_dim)
        kv.reserve(n)
        cos, sin = self._rope.table(kv.length, n)
        for i, layer in enumerate(self._block.layers):
            kv.write(i, rotate(layer.k_norm(fused[:, i, 0]), cos, sin), fused[:, i, 1])
        kv.advance(n)

    @torch.inference_mode()
    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (), floor: float = 0.0,
    ) -> Proposal:  # fmt: skip
        # what is known stands in the block as it is (clamped rows); the rest is filled in around it
        assert isinstance(state, DFlashState)
        assert state.watermark == len(tokens) - 1, "ingest before you propose"
        # every row sees the whole block, so the block does not shrink when fewer tokens are
        # wanted: the first ones would come out differently
        known = known[:count]
        if len(known) == count:
            return Proposal(tuple(known))
        masked = [self.config.mask_token_id] * (self.max_draft - len(known))
        block = [tokens[-1], *known, *masked]
        logits = self._logits(state, block, 1 + len(known))[: count - len(known)]
        # rows are marginals: given the context, each is drawn by itself, and so the
        # distribution of a draft token does not depend on the earlier ones
        chosen, q = chooser.choose(logits, len(tokens) + len(known), len(tokens))
        ending = Ending(floor)
        for i, chance in enumerate(chances(logits, q, floor)):
            if ending.before(chance):
                chosen, q = chosen[:i], None if q is None else q[:i]
                break
        draft = self._head.tokens(chosen, state.words)
        q = self._head.scatter(q, state.words)
        return Proposal((*known, *draft), certain(known, q), ending.doubt)

    def _logits(self, state: DFlashState, block: Sequence[int], skip: int) -> Tensor:
        """Of a block's rows but the first `skip`. Past the cache's length: nothing to undo."""
        kv, work = state.kv, self._work
        if work and work.has_room(kv):
            with work.lock:
                (y,) = work(kv, block)
                return self._head(y[skip:], state.words)
        kv.reserve(len(block))
        ids = torch.tensor(block, device=self._target.device)
        table = self._rope.table(kv.length, len(block))
        x = self._block.fast(ids, table, kv)
        if x is None:
            x = self._block(ids, _Own(*table, kv, self._block.sights()))
        return self._head(self._block.norm(x[skip:]), state.words)


@dataclass(frozen=True, slots=True)
class _Own:
    """The sequence's own cache, as the memory of a block; its length stays."""

    cos: Tensor
    sin: Tensor
    kv: KVCache
    sights: Sequence[Sight]

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, *self.kv.write(index, k, v), self.sights[index])
