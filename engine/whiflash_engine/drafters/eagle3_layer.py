"""EAGLE-3's layer, from a slot's embedding and features to its output state; see `eagle3`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from whiflash_engine.checkpoints.eagle3 import Eagle3Config
from whiflash_engine.drafters.rounded import draft_linear
from whiflash_engine.layers import RMSNorm, rotate, swiglu
from whiflash_engine.linear import Linear
from whiflash_engine.memory import Memory


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
        self._kv = Linear(torch.cat([w[attn + "k_proj.weight"], w[attn + "v_proj.weight"]]))
        self._o = draft_linear(w[attn + "o_proj.weight"])
        self._gate_up = draft_linear(
            torch.cat([w["midlayer.mlp.gate_proj.weight"], w["midlayer.mlp.up_proj.weight"]])
        )
        self._down = Linear(w["midlayer.mlp.down_proj.weight"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self._norms[name](x)

    def __call__(self, ids: Tensor, g: Tensor, memory: Memory, rows: int) -> Tensor:
        """Keep the slots (g[i], ids[i]); output states of the last `rows`, which alone run the
        whole layer. ids: (n,), g: (n, hidden) -> (rows, hidden)."""
        c, n = self._config, g.shape[0]
        e = self._embed(ids)
        normed = self.norm("midlayer.hidden_norm.weight", g)
        a = torch.cat((self.norm("midlayer.input_layernorm.weight", e), normed), -1)
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
