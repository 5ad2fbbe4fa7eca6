"""The AR drafter: EAGLE-3 (arXiv 2503.01840), a chain of tokens, one layer per token.

Slot t pairs the target's features at t with the embedding of x_{t+1} and predicts x_{t+2}:

    g = fc(low(t), mid(t), high(t))      from the target; later g is the drafter's own state
    a = [norm(embed(x_{t+1})) ; norm(g)]
    h = g + attention(a);  y = h + mlp(norm(h));  logits = head(norm(y))

Catching up is KV-only (WhiFlash, arXiv 2606.07710): a slot's keys and values depend on `a`
alone, so all slots of a backlog but the last skip q, softmax, o, MLP and head. The ordinary
ingest after a verification does the same with a shorter list, on a CPU by one call of C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.checkpoints.eagle3 import Eagle3Config
from whiflash_engine.config import require
from whiflash_engine.drafters.base import Chooser, DraftState, Proposal, certain
from whiflash_engine.drafters.eagle3_chain import Chain, ChainParts, chain
from whiflash_engine.drafters.eagle3_ingest import Ingest, IngestParts, ingest
from whiflash_engine.drafters.eagle3_layer import SLOTS, Eagle3Layer
from whiflash_engine.drafters.ending import Ending, chances
from whiflash_engine.drafters.fixed_slots import FixedSlots
from whiflash_engine.drafters.taps import Taps, embedding, table
from whiflash_engine.drafters.vocabulary import ContextWords, DraftHead
from whiflash_engine.features import FeatureLog
from whiflash_engine.graphs import Capture
from whiflash_engine.layers import Rope, Sight, attention
from whiflash_engine.linear import Linear
from whiflash_engine.target.base import Target

DEPTH: Final = 5
"""Tokens that are drafted in a round, unless another number is asked for."""


class Eagle3State:
    """KV of the ingested slots, the output state of the newest one, the words met so far."""

    def __init__(self, kv: KVCache, words: ContextWords) -> None:
        self.kv, self.words = kv, words
        self.newest: Tensor | None = None

    @property
    def watermark(self) -> int:
        return self.kv.length

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes

    def crop(self, length: int) -> None:
        """A crop leaves one slot less: the output state of the new last slot is not kept,
        so the next ingest has to compute that slot again."""
        self.words.crop(length)
        if length < self.kv.length:
            self.kv.crop(max(length - 1, 0))
            self.newest = None


def checked_depth(depth: int) -> int:
    """ConfigError unless so many tokens can be drafted."""
    require(depth >= 1, "ar_depth", depth, "must be at least 1")
    return depth


class Eagle3Drafter:
    """Implements `Drafter`. weights: canonical names of `load_eagle3`; depth: K, None for the
    usual one. capture: makes a few slots cheaper to start; None runs all as they come."""

    def __init__(
        self,
        config: Eagle3Config,
        weights: Mapping[str, Tensor],
        target: Target,
        depth: int | None = None,
        *,
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.max_draft = DEPTH if depth is None else checked_depth(depth)
        self._target = target
        self._taps = Taps(target, config.aux)
        self._layer = Eagle3Layer(config, weights, embedding(target, weights))
        self._fc = Linear(weights["fc.weight"], rounded=True)
        self._head = DraftHead(target, weights)
        self._rope = Rope(config.rope, config.head_dim, target.dtype, target.device)
        self._chain = self._chained(embeddings=table(target, weights))
        self._ingest = None if capture else self._ingested(table(target, weights))
        self._fixed = capture and FixedSlots(config, self._layer, self._rope, target, capture)

    def _chained(self, embeddings: Tensor | None) -> Chain | None:
        """None where it would be no faster."""
        c, layer, head = self.config, self._layer, self._head.linear
        if embeddings is None or not isinstance(head, Linear):
            return None
        names = ("midlayer.input_layernorm", "midlayer.hidden_norm", "norm")
        norms = [layer.norm_weight(f"{name}.weight") for name in names]
        parts = ChainParts(
            embeddings, (norms[0], norms[1], norms[2]), head, self._head.ids,
            feeds_normed=c.norm_output, adds_normed=c.norm_before_residual,
        )  # fmt: skip
        return chain(layer.stack, parts)

    def _ingested(self, embeddings: Tensor | None) -> Ingest | None:
        """None where it would be no faster."""
        c, norm = self.config, self._layer.norm_weight
        if embeddings is None:
            return None
        taps = [norm(f"fc_norm.{i}.weight") for i in range(len(c.aux) if c.fc_norm else 0)]
        first = norm("input_norm.weight") if c.norm_before_fc and not taps else None
        parts = IngestParts(
            self._taps.places, self._taps.every, self._fc, torch.stack(taps) if taps else None,
            first, embeddings,
            norm("midlayer.input_layernorm.weight"), norm("midlayer.hidden_norm.weight"),
            adds_normed=c.norm_before_residual,
        )  # fmt: skip
        return ingest(self._layer.stack, parts)

    def new_state(self, capacity: int) -> Eagle3State:
        c, t = self.config, self._target
        kv = KVCache(1, c.num_kv_heads, c.head_dim, capacity + self.max_draft, t.dtype, t.device)
        return Eagle3State(kv, self._head.new_words())

    @torch.inference_mode()
    def ingest(self, state: DraftState, log: FeatureLog, tokens: Sequence[int]) -> None:
        assert isinstance(state, Eagle3State) and len(tokens) == log.length + 1
        state.words.learn(tokens)
        start, stop = state.watermark, log.length
        if start < stop:
            rows, behind = log.rows(start, stop), tokens[start + 1 :]
            state.newest = self._take_in(state.kv, rows, behind)

    @torch.inference_mode()
    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (), floor: float = 0.0,
    ) -> Proposal:  # fmt: skip
        assert isinstance(state, Eagle3State)
        slots, first = state.watermark, len(tokens)
        assert slots == first - 1 and state.newest is not None, "ingest before you propose"
        if len(known) >= count:
            return Proposal(tuple(known[:count]))
        if self._chain is not None and chooser.greedy:
            kv = state.kv
            kv.reserve(count)
            places = self._rope.table(kv.length, count)
            found, doubt = self._chain(
                state.newest, kv, places, state.words, known, count, floor
            )  # fmt: skip
            return Proposal(found, doubt=doubt)
        y, ending = state.newest, Ending(floor)
        draft: list[int] = []
        drawn_from: list[Tensor] = []
        try:
            for i in range(count):
                # the state fed back is pre-norm, unless the checkpoint says `norm_output`
                normed = self._norm("norm.weight", y)
                if i < len(known):
                    draft.append(known[i])
                else:
                    logits = self._head(normed, state.words)
                    chosen, q = chooser.choose(logits, first + i, first)
                    if ending.before(*chances(logits, q, floor)):
                        break
                    draft += self._head.tokens(chosen, state.words)
                    if q is not None:
                        drawn_from.append(q)
                if i + 1 == count or ending.over:
                    break
                y = self._slots(state.kv, normed if self.config.norm_output else y, draft[-1:])
        finally:
            state.kv.crop(slots)  # draft-time KV never survives the round
        q = self._head.scatter(torch.cat(drawn_from) if drawn_from else None, state.words)
        return Proposal(tuple(draft), certain(known, q), ending.doubt)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self._layer.norm(name, x)

    def _fuse(self, rows: Tensor) -> Tensor:
        """(n, taps * target hidden) -> (n, hidden)."""
        taps = self._taps(rows)
        if self.config.fc_norm:
            parts = [self._norm(f"fc_norm.{i}.weight", taps[:, i]) for i in range(taps.shape[1])]
            return self._fc(torch.cat(parts, -1))
        fused = taps.flatten(1)
        return self._fc(
            self._norm("input_norm.weight", fused) if self.config.norm_before_fc else fused
        )

    def _take_in(
        self, kv: KVCache, features: Tensor, tokens: Sequence[int], rows: int = 1
    ) -> Tensor:
        """As `_slots`, from rows of the feature log."""
        if self._ingest is None or len(tokens) > SLOTS:
            return self._slots(kv, self._fuse(features), tokens, rows)
        kv.reserve(len(tokens))
        places = self._rope.table(kv.length, len(tokens))
        y = self._ingest(features, tokens, places, kv, rows)
        kv.advance(len(tokens))
        return y

    def _slots(self, kv: KVCache, g: Tensor, tokens: Sequence[int], rows: int = 1) -> Tensor:
        """Write the slots (g[i], tokens[i]) after the last one; output state of the last.

        g: (n, hidden) -> (1, hidden). rows: how many of the last slots run the whole layer.
        """
        n = g.shape[0]
        kv.reserve(n)
        if self._fixed and self._fixed.takes(n, kv):
            return self._fixed(kv, g, tokens)
        ids = torch.tensor(tokens, dtype=torch.long, device=g.device)
        table = self._rope.table(kv.length, n)
        y = self._layer.fast(ids, g, table, kv, rows)
        if y is None:
            y = self._layer(ids, g, _Own(*table, kv), rows)
        kv.advance(n)  # last: a slot counts once its output state is there
        return y[-1:]


@dataclass(frozen=True, slots=True)
class _Own:
    """The sequence's own cache, as the memory of some slots."""

    cos: Tensor
    sin: Tensor
    kv: KVCache

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, *self.kv.write(index, k, v), Sight())
