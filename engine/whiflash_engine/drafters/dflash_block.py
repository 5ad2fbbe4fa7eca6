"""DFlash's block: rows that see the context and each other; see `dflash`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.checkpoints.dflash import DFlashConfig
from whiflash_engine.drafters.rounded import draft_linear
from whiflash_engine.layers import MOST_ROWS, RMSNorm, Sight, rotate, swiglu
from whiflash_engine.linear import Linear
from whiflash_engine.memory import Memory
from whiflash_engine.stack import LayerParts, stack


class DFlashBlock:
    """weights: canonical names of `load_dflash`. embed: (n,) ids -> (n, hidden)."""

    def __init__(
        self,
        config: DFlashConfig,
        weights: Mapping[str, Tensor],
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        self._embed = embed
        self.layers = [_Layer(config, weights, i) for i in range(config.num_layers)]
        self.norm = RMSNorm(weights["norm.weight"], config.rms_norm_eps)
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        self._stack = stack([layer.parts for layer in self.layers], heads)

    def sights(self) -> list[Sight]:
        """Fresh ones, of each layer."""
        return [layer.sight() for layer in self.layers]

    def __call__(self, ids: Tensor, memory: Memory) -> Tensor:
        """(block,) ids -> (block, hidden), before the last norm."""
        x = self._embed(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, i, memory)
        return x

    def fast(self, ids: Tensor, table: tuple[Tensor, Tensor], kv: KVCache) -> Tensor | None:
        """The same, to the bit, behind what a cache holds that has room for it; None where it
        would be no faster. table: of `Rope`, for the rows' positions."""
        if self._stack is None or len(ids) > MOST_ROWS:
            return None
        x = self._embed(ids)
        return self._stack(x, table, kv, x, {})


def run_block(block: DFlashBlock, ids: Tensor, memory: Memory) -> tuple[Tensor, ...]:
    """As `Run`: what the head reads."""
    return (block.norm(block(ids, memory)),)


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
        self._down = Linear(get("mlp.down_proj"), rounded=True)
        self._q_norm = RMSNorm(get("self_attn.q_norm"), eps)
        self.k_norm = RMSNorm(get("self_attn.k_norm"), eps)
        self.parts = LayerParts(
            self._norm_in, self._qkv, self._q_norm, self.k_norm, self._o,
            self._norm_mlp, self._gate_up, self._down, self.sight(),
        )  # fmt: skip

    def sight(self) -> Sight:
        """Of a full layer the block sees the context and itself both ways."""
        return Sight(causal=self._causal, window=self._window)

    def __call__(self, x: Tensor, index: int, memory: Memory) -> Tensor:
        """x: (block, hidden) -> the same."""
        c, n = self._config, x.shape[0]
        qkv = self._qkv(self._norm_in(x))
        qkv = qkv.view(n, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = torch.split(qkv, [c.num_heads, c.num_kv_heads, c.num_kv_heads], 1)
        q = rotate(self._q_norm(q), memory.cos, memory.sin)
        k = rotate(self.k_norm(k), memory.cos, memory.sin)
        x = x + self._o(memory.attend(index, q, k, v))
        return x + self._down(swiglu(self._gate_up(self._norm_mlp(x))))
