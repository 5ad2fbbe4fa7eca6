"""The native target: decoders of the Llama, Qwen2, Qwen3 and Mistral family.

    embed -> n x [norm -> qkv -> (q/k norm) -> RoPE -> attention -> o -> +
                  norm -> gate/up -> SwiGLU -> down -> +] -> norm -> head

q, k, v are one product, gate and up another; taps are copied on the way. The stream between
the layers stays in float32 whatever the weights are: it is a small part of the cost, and in
bfloat16 it would lose the low bits of every layer's contribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.config import ModelConfig, require
from whiflash_engine.layers import RMSNorm, Rope, Sight, attention, rotate, swiglu
from whiflash_engine.linear import Linear
from whiflash_engine.target.base import TargetCache, TargetOutput

# Longer inputs are run in pieces: the mask of a piece stays small, whatever the prompt.
_PIECE = 512


class NativeTarget:
    """Implements `Target`. Holds weights, nothing of a sequence.

    weights: Hugging Face names (`model.layers.0.self_attn.q_proj.weight`, ...), all of one
    dtype and device; they are repacked, so the mapping may be dropped afterwards.
    taps: boundary indices 0..num_layers (see `Target.taps`).
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], taps: tuple[int, ...] = ()
    ) -> None:
        for tap in taps:
            require(0 <= tap <= config.num_layers, "tap", tap, f"0..{config.num_layers}")
        self.config = config
        self.taps = taps
        self._embedding = weights["model.embed_tokens.weight"]
        self._head_weight = self._embedding if config.tie_embeddings else weights["lm_head.weight"]
        self._head = Linear(self._head_weight)
        self._norm = RMSNorm(weights["model.norm.weight"].float(), config.rms_norm_eps)
        layer = partial(_Layer, config, weights, self.dtype)
        # one thread packs a matrix
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            self._layers = list(pool.map(layer, range(config.num_layers)))
        self._rope = Rope(config.rope, config.head_dim, self.dtype, self.device)

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.dtype

    def new_cache(self, capacity: int) -> KVCache:
        c = self.config
        return KVCache(c.num_layers, c.num_kv_heads, c.head_dim, capacity, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        if not isinstance(cache, KVCache):
            raise TypeError(f"a cache of this target was expected, not {type(cache).__name__}")
        cache.reserve(len(tokens))
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
        width = len(self.taps) * self.config.hidden_size
        features = torch.empty(len(tokens), width, dtype=self.dtype, device=self.device)
        last = self._embedding[:0].float()
        for start in range(0, len(tokens), _PIECE):
            piece = ids[start : start + _PIECE]
            x = self._run(piece, cache, features[start : start + _PIECE])
            last = torch.cat((last, x))[-rows:] if rows else last
        hidden = self._norm(last).to(self.dtype)
        return TargetOutput(self._head(hidden).float(), features, hidden)

    def _run(self, ids: Tensor, cache: KVCache, features: Tensor) -> Tensor:
        """ids: (n,) -> (n, hidden) float32, before the last norm. Fills features."""
        c, n = self.config, ids.shape[0]
        run = self._begin(n, cache)
        x = F.embedding(ids, self._embedding).float()
        for i, layer in enumerate(self._layers):
            self._tap(i, x, features)
            x = layer(x, i, run)
        self._tap(c.num_layers, x, features)
        cache.advance(n)
        return x

    def _begin(self, n: int, cache: KVCache) -> _Pass:
        cos, sin = self._rope.table(cache.length, n)
        return _Pass(cos, sin, Sight(window=self.config.sliding_window), *cache.places(n))

    def _tap(self, boundary: int, x: Tensor, features: Tensor) -> None:
        if boundary in self.taps:
            start = self.taps.index(boundary) * self.config.hidden_size
            features[:, start : start + self.config.hidden_size] = x

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self._embedding)

    def head_rows(self, ids: Tensor | None) -> Tensor:
        return self._head_weight if ids is None else self._head_weight[ids]


@dataclass(frozen=True, slots=True)
class _Pass:
    """What the layers of a pass over n positions share.

    cos, sin: of `Rope.table`. new, held: `KVCache.places`.
    """

    cos: Tensor
    sin: Tensor
    sight: Sight
    new: Sequence[Tensor]
    held: Sequence[Tensor]


class _Layer:
    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, index: int
    ) -> None:
        def get(name: str) -> Tensor:
            return weights[f"model.layers.{index}.{name}"]

        def fused(names: Sequence[str], bias: bool) -> Linear:
            return Linear(
                torch.cat([get(f"{name}.weight") for name in names]),
                torch.cat([get(f"{name}.bias") for name in names]) if bias else None,
            )

        self._config, self._dtype = config, dtype
        eps = config.rms_norm_eps
        self._norm_in = RMSNorm(get("input_layernorm.weight").float(), eps)
        self._norm_mlp = RMSNorm(get("post_attention_layernorm.weight").float(), eps)
        self._qkv = fused([f"self_attn.{x}_proj" for x in "qkv"], config.qkv_bias)
        self._o = fused(["self_attn.o_proj"], config.o_bias)
        self._gate_up = fused(["mlp.gate_proj", "mlp.up_proj"], config.mlp_bias)
        self._down = fused(["mlp.down_proj"], config.mlp_bias)
        self._q_norm = self._k_norm = None
        if config.qk_norm:
            self._q_norm = RMSNorm(get("self_attn.q_norm.weight"), eps)
            self._k_norm = RMSNorm(get("self_attn.k_norm.weight"), eps)

    def __call__(self, x: Tensor, index: int, run: _Pass) -> Tensor:
        """x: (n, hidden) float32 -> the same. Writes its keys and values."""
        c, heads, kv_heads = self._config, self._config.num_heads, self._config.num_kv_heads
        qkv = self._qkv(self._norm_in(x).to(self._dtype))
        qkv = qkv.view(x.shape[0], heads + 2 * kv_heads, c.head_dim)
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], 1)
        if self._q_norm is not None and self._k_norm is not None:
            qk = torch.cat((self._q_norm(qk[:, :heads]), self._k_norm(qk[:, heads:])), 1)
        q, k = torch.split(rotate(qk, run.cos, run.sin), [heads, kv_heads], 1)
        run.new[index][:kv_heads].copy_(k.transpose(0, 1))
        run.new[index][kv_heads:].copy_(v.transpose(0, 1))
        keys, values = run.held[2 * index : 2 * index + 2]
        x = x + self._o(attention(q, keys, values, run.sight))
        return x + self._down(swiglu(self._gate_up(self._norm_mlp(x).to(self._dtype))))
