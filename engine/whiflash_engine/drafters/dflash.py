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

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.checkpoints.dflash import DFlashConfig
from whiflash_engine.config import require
from whiflash_engine.drafters.base import Chooser, DraftState, Proposal, certain
from whiflash_engine.drafters.rounded import draft_linear
from whiflash_engine.drafters.taps import Taps, embedding
from whiflash_engine.drafters.vocabulary import ContextWords, DraftHead
from whiflash_engine.features import FeatureLog
from whiflash_engine.layers import RMSNorm, Rope, Sight, attention, rotate, swiglu
from whiflash_engine.linear import Linear
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
    """

    def __init__(
        self,
        config: DFlashConfig,
        weights: Mapping[str, Tensor],
        target: Target,
        block: int | None = None,
    ) -> None:
        size = config.block_size if block is None else checked_block(block, config)
        self.config = config
        self.max_draft = size - 1
        self._target = target
        self._taps = Taps(target, config.taps)
        eps = config.rms_norm_eps
        self._hidden_norm = RMSNorm(weights["hidden_norm.weight"], eps)
        self._norm = RMSNorm(weights["norm.weight"], eps)
        self._fc = Linear(weights["fc.weight"])
        prefixes = [f"layers.{i}." for i in range(config.num_layers)]
        self._context_kv = Linear(
            torch.cat([weights[f"{p}self_attn.{x}_proj.weight"] for p in prefixes for x in "kv"])
        )
        self._layers = [_Layer(config, weights, i) for i in range(config.num_layers)]
        self._head = DraftHead(target, weights)
        self._embed = embedding(target, weights)
        self._rope = Rope(config.rope, config.head_dim, target.dtype, target.device)

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
        for i, layer in enumerate(self._layers):
            kv.write(i, rotate(layer.k_norm(fused[:, i, 0]), cos, sin), fused[:, i, 1])
        kv.advance(n)

    @torch.inference_mode()
    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (),
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
        ids = torch.tensor(block, device=self._target.device)
        x = self._embed(ids)
        state.kv.reserve(len(block))
        table = self._rope.table(state.kv.length, len(block))
        for i, layer in enumerate(self._layers):
            x = layer(x, i, state.kv, table)  # rows past the length: nothing to undo
        y = self._norm(x[1 + len(known) :])
        logits = self._head(y, state.words)[: count - len(known)]
        # rows are marginals: given the context, each is drawn by itself, and so the
        # distribution of a draft token does not depend on the earlier ones
        chosen, q = chooser.choose(logits, len(tokens) + len(known))
        draft = self._head.tokens(chosen, state.words)
        return Proposal((*known, *draft), certain(known, self._head.scatter(q, state.words)))


class _Layer:
    def __init__(self, config: DFlashConfig, weights: Mapping[str, Tensor], index: int) -> None:
        def get(name: str) -> Tensor:
            return weights[f"layers.{index}.{name}.weight"]

        self._config = config
        self._window = config.windows[index]
        self._causal = config.causal[index]
        eps = config.rms_norm_eps
        self._norm_in = RMSNorm(get("input_layernorm"), eps)
        self._norm_mlp = RMSNorm(get("post_attention_layernorm"), eps)
        self._qkv = draft_linear(torch.cat([get(f"self_attn.{x}_proj") for x in "qkv"]))
        self._o = draft_linear(get("self_attn.o_proj"))
        self._gate_up = draft_linear(torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]))
        self._down = Linear(get("mlp.down_proj"))
        self._q_norm = RMSNorm(get("self_attn.q_norm"), eps)
        self.k_norm = RMSNorm(get("self_attn.k_norm"), eps)

    def __call__(self, x: Tensor, index: int, kv: KVCache, table: tuple[Tensor, Tensor]) -> Tensor:
        """x: (block, hidden) at the positions kv.length.., which `table` of `Rope` is for; the
        cache's length stays."""
        c, n = self._config, x.shape[0]
        qkv = self._qkv(self._norm_in(x))
        qkv = qkv.view(n, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = torch.split(qkv, [c.num_heads, c.num_kv_heads, c.num_kv_heads], 1)
        q = rotate(self._q_norm(q), *table)
        keys, values = kv.write(index, rotate(self.k_norm(k), *table), v)
        # of a full layer the block sees the context and itself both ways
        sight = Sight(causal=self._causal, window=self._window)
        x = x + self._o(attention(q, keys, values, sight))
        return x + self._down(swiglu(self._gate_up(self._norm_mlp(x))))
