"""The network of the native target: decoders of the Llama, Qwen2, Qwen3 and Mistral family.

    embed -> n x [norm -> qkv -> (q/k norm) -> RoPE -> attention -> o -> +
                  norm -> gate/up -> SwiGLU -> down -> +] -> norm -> head

q, k, v are one product, gate and up another; taps are copied on the way. The stream between
the layers stays in float32 whatever the weights are: it is a small part of the cost, and in
bfloat16 it would lose the low bits of every layer's contribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.config import ModelConfig, require
from whiflash_engine.kernels.cpu import kernels
from whiflash_engine.layers import MOST_ROWS, RMSNorm, Sight, rotate, swiglu
from whiflash_engine.linear import Linear
from whiflash_engine.memory import Memory
from whiflash_engine.stack import LayerParts, stack


class Decoder:
    """weights: Hugging Face names (`model.layers.0.self_attn.q_proj.weight`, ...), all of one
    dtype and device; they are repacked, so the mapping may be dropped afterwards.
    taps: boundary indices 0..num_layers (see `Target.taps`). rounded: of all `Linear`s.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        taps: tuple[int, ...],
        *,
        rounded: bool = False,
    ) -> None:
        for tap in taps:
            require(0 <= tap <= config.num_layers, "tap", tap, f"0..{config.num_layers}")
        self.config, self.taps = config, taps
        self.embedding = weights["model.embed_tokens.weight"]
        self.head_weight = self.embedding if config.tie_embeddings else weights["lm_head.weight"]
        self._head = Linear(self.head_weight, rounded=rounded)
        self._norm = RMSNorm(weights["model.norm.weight"].float(), config.rms_norm_eps)
        layer = partial(_Layer, config, weights, self.embedding.dtype, rounded)
        # one thread packs a matrix
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            self._layers = list(pool.map(layer, range(config.num_layers)))
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        self._stack = stack([layer.parts for layer in self._layers], heads)
        own = kernels()
        if own is not None and self._stack is not None:
            own.stay()  # from here on passes are theirs alone
        self._columns = {tap: i * config.hidden_size for i, tap in enumerate(taps)}

    def features(self, count: int) -> Tensor:
        """Room for the taps of so many positions: (count, taps * hidden)."""
        return self.embedding.new_empty(count, len(self.taps) * self.config.hidden_size)

    def __call__(self, ids: Tensor, memory: Memory, features: Tensor) -> Tensor:
        """ids: (n,) -> (n, hidden) float32, before the last norm. Fills features."""
        x = F.embedding(ids, self.embedding).float()
        for i, layer in enumerate(self._layers):
            self._tap(i, x, features)
            x = layer(x, i, memory)
        self._tap(self.config.num_layers, x, features)
        return x

    def fast(
        self, ids: Tensor, table: tuple[Tensor, Tensor], cache: KVCache, features: Tensor,
        rows: int,
    ) -> Tensor | None:  # fmt: skip
        """The last `rows` of the same, to the bit, for up to `MOST_ROWS` ids behind what the cache
        holds, which has room for them; None where it would be no faster. table: of `Rope`, for
        their positions."""
        if self._stack is None or len(ids) > MOST_ROWS:
            return None
        x = F.embedding(ids, self.embedding)
        return self._stack(x, table, cache, features, self._columns, rows=rows)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, hidden), as it comes from the layers -> logits (n, vocab) float32, and what they
        were made of, (n, hidden)."""
        hidden = self._norm(x).to(self.embedding.dtype)
        return self._head(hidden).float(), hidden

    def _tap(self, boundary: int, x: Tensor, features: Tensor) -> None:
        if boundary in self._columns:
            start = self._columns[boundary]
            features[:, start : start + self.config.hidden_size] = x


class _Layer:
    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        rounded: bool,
        index: int,
    ) -> None:
        def get(name: str) -> Tensor:
            return weights[f"model.layers.{index}.{name}"]

        def fused(names: Sequence[str], bias: bool) -> Linear:
            return Linear(
                torch.cat([get(f"{name}.weight") for name in names]),
                torch.cat([get(f"{name}.bias") for name in names]) if bias else None,
                rounded=rounded,
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
        self.parts = LayerParts(
            self._norm_in, self._qkv, self._q_norm, self._k_norm, self._o,
            self._norm_mlp, self._gate_up, self._down, Sight(window=config.sliding_window),
        )  # fmt: skip

    def __call__(self, x: Tensor, index: int, memory: Memory) -> Tensor:
        """x: (n, hidden) float32 -> the same. Writes its keys and values."""
        c, heads, kv_heads = self._config, self._config.num_heads, self._config.num_kv_heads
        qkv = self._qkv(self._norm_in(x).to(self._dtype))
        qkv = qkv.view(x.shape[0], heads + 2 * kv_heads, c.head_dim)
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], 1)
        if self._q_norm is not None and self._k_norm is not None:
            qk = torch.cat((self._q_norm(qk[:, :heads]), self._k_norm(qk[:, heads:])), 1)
        q, k = torch.split(rotate(qk, memory.cos, memory.sin), [heads, kv_heads], 1)
        x = x + self._o(memory.attend(index, q, k, v))
        return x + self._down(swiglu(self._gate_up(self._norm_mlp(x).to(self._dtype))))
