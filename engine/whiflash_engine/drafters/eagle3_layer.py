"""EAGLE-3's layer, from a slot's embedding and features to its output state; see `eagle3`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.checkpoints.eagle3 import Eagle3Config
from whiflash_engine.drafters.rounded import draft_linear
from whiflash_engine.layers import RMSNorm, Sight, rotate, swiglu
from whiflash_engine.linear import Linear
from whiflash_engine.memory import Memory
from whiflash_engine.stack import LayerParts, Stack, stack

SLOTS: Final = 16
"""As many as a round commits, or a few more: of so few each has a query as well, where q, k and v
are one product. A longer backlog is caught up with by keys and values alone."""


class Eagle3Layer:
    """weights: canonical names of `load_eagle3`. embed: (n,) ids -> (n, hidden)."""

    def __init__(
        self,
        config: Eagle3Config,
        weights: Mapping[str, Tensor],
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        self._config, self._embed = config, embed
        self._norms = {
            name: RMSNorm(weight, config.rms_norm_eps)
            for name, weight in weights.items()
            if name.endswith("weight") and weight.dim() == 1
        }
        w, attn = weights, "midlayer.self_attn."
        self._q = draft_linear(w[attn + "q_proj.weight"])
        keys = [w[attn + "k_proj.weight"], w[attn + "v_proj.weight"]]
        self._kv = Linear(torch.cat(keys), rounded=True)
        self._o = draft_linear(w[attn + "o_proj.weight"])
        self._gate_up = draft_linear(
            torch.cat([w["midlayer.mlp.gate_proj.weight"], w["midlayer.mlp.up_proj.weight"]])
        )
        self._down = Linear(w["midlayer.mlp.down_proj.weight"], rounded=True)
        self.stack = self._stacked(weights) if self._kv.packed is not None else None
        """None where it would be no faster."""

    def _stacked(self, weights: Mapping[str, Tensor]) -> Stack | None:
        """q, k and v are one product here, so that every slot has a query. These weights lie there
        twice then, because a long backlog wants keys and values alone."""
        c, norms = self._config, self._norms
        attn = [weights[f"midlayer.self_attn.{x}_proj.weight"] for x in "qkv"]
        part = LayerParts(
            norms["midlayer.hidden_norm.weight"], Linear(torch.cat(attn), rounded=True),
            norms.get("midlayer.self_attn.q_norm.weight"),
            norms.get("midlayer.self_attn.k_norm.weight"), self._o,
            norms["midlayer.post_attention_layernorm.weight"], self._gate_up, self._down, Sight(),
        )  # fmt: skip
        return stack([part], (c.num_heads, c.num_kv_heads, c.head_dim))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self._norms[name](x)

    def norm_weight(self, name: str) -> Tensor:
        return self._norms[name].weight

    def __call__(self, ids: Tensor, g: Tensor, memory: Memory, rows: int) -> Tensor:
        """Keep the slots (g[i], ids[i]); output states of the last `rows`, which alone run the
        whole layer. ids: (n,), g: (n, hidden) -> (rows, hidden)."""
        c, n = self._config, g.shape[0]
        a, normed = self._inputs(ids, g)
        k, v = self._kv(a).view(n, 2, c.num_kv_heads, c.head_dim).unbind(1)
        q = self._q(a[-rows:]).view(rows, c.num_heads, c.head_dim)
        if c.qk_norm:
            k = self.norm("midlayer.self_attn.k_norm.weight", k)
            q = self.norm("midlayer.self_attn.q_norm.weight", q)
        k = rotate(k, memory.cos, memory.sin)
        q = rotate(q, memory.cos[-rows:], memory.sin[-rows:])
        residual = normed[-rows:] if c.norm_before_residual else g[-rows:]
        h = residual + self._o(memory.attend(0, q, k, v))
        inner = self._gate_up(self.norm("midlayer.post_attention_layernorm.weight", h))
        return h + self._down(swiglu(inner))

    def fast(
        self, ids: Tensor, g: Tensor, table: tuple[Tensor, Tensor], kv: KVCache, rows: int
    ) -> Tensor | None:
        """The same, to the bit, for a few slots, behind what a cache holds that has room for them;
        None where it would be no faster. table: of `Rope`, for the slots' positions."""
        if self.stack is None or len(ids) > SLOTS:
            return None
        a, normed = self._inputs(ids, g)
        residual = normed if self._config.norm_before_residual else g
        return self.stack(residual, table, kv, residual, {}, given=a, rows=rows)

    def _inputs(self, ids: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """What q, k and v are made of, (n, 2 * hidden), and g, normed."""
        normed = self.norm("midlayer.hidden_norm.weight", g)
        e = self.norm("midlayer.input_layernorm.weight", self._embed(ids))
        return torch.cat((e, normed), -1), normed
