"""The EAGLE-3 head as it is trained (arXiv 2503.01840; layout of SafeAILab/EAGLE).

Slot t combines the target's features at position t with the embedding of x_{t+1} and predicts
x_{t+2}. Training-time test: step i > 0 is fed the head's own state of step i-1 instead of
features, and the next real token. A query of step i at slot t sees the true keys of slots <= t
and, at its own slot only, the keys of steps 1..i: the "diagonal", because that is all that a
chain started at slot t would have in its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whiflash_engine.training.drafter_parts import (
    MLP,
    DrafterShape,
    Linear,
    group_queries,
    split_heads,
    ungroup,
)
from whiflash_engine.training.llama import Llama, RMSNorm, rope_table, rotate


class Eagle3Attention(nn.Module):
    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = Linear(2 * shape.hidden_size, queries)
        self.k_proj = Linear(2 * shape.hidden_size, keys)
        self.v_proj = Linear(2 * shape.hidden_size, keys)
        self.o_proj = Linear(queries, shape.hidden_size)


class Eagle3Layer(nn.Module):
    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.hidden_norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Eagle3Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape.hidden_size, shape.intermediate_size)


@dataclass
class Keys:
    """What queries may see: true slots first, then one diagonal per later step."""

    true_k: Tensor
    """[B,kv,S,hd], every slot of the sequence."""
    true_v: Tensor
    visible: Tensor
    """bool [B,1,R,S]: may query row r see slot s?"""
    diagonal: list[tuple[Tensor, Tensor]]
    """Per later step: k and v of the query rows themselves, [B,kv,R,hd]."""


class Eagle3(nn.Module):
    """Parameters under their published names. Embedding and head belong to the target."""

    def __init__(self, shape: DrafterShape, taps: int = 3) -> None:
        super().__init__()
        self.shape = shape
        self.fc = Linear(taps * shape.hidden_size, shape.hidden_size)
        self.midlayer = Eagle3Layer(shape)
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def unroll(self, taps: Tensor, embedded: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """States (before `norm`) of training-time-test steps 0..n-1, each [B,R,H].

        taps [B,S,n_taps,H]: features of slots 0..S-1; `embedded[0]` [B,S,H]: embeddings of
        x_{t+1} for every slot; `embedded[i]` [B,R,H] for i > 0: embeddings of x_{t+1+i} for
        the query rows; rows int64 [B,R]: the slots that are trained.
        """
        length = taps.shape[1]
        fused = self.fc(taps.flatten(2))
        layer, attention = self.midlayer, self.midlayer.self_attn
        head_dim = self.shape.head_dim
        both = torch.cat((layer.input_layernorm(embedded[0]), layer.hidden_norm(fused)), dim=-1)
        cos, sin = self._rope(torch.arange(length), fused.dtype)
        true_k = rotate(split_heads(attention.k_proj(both), head_dim), cos, sin)
        keys = Keys(
            true_k=true_k,
            true_v=split_heads(attention.v_proj(both), head_dim),
            visible=(torch.arange(length) <= rows[:, :, None])[:, None],
            diagonal=[],
        )
        state = _gather(fused, rows)
        both = _gather(both, rows)
        states = [self._finish(state, both, rows, keys)]
        for step in range(1, len(embedded)):
            state = states[-1]
            both = torch.cat(
                (layer.input_layernorm(embedded[step]), layer.hidden_norm(state)), dim=-1
            )
            cos, sin = self._rope(rows + step, state.dtype)
            k = rotate(split_heads(attention.k_proj(both), head_dim), cos[:, None], sin[:, None])
            keys.diagonal.append((k, split_heads(attention.v_proj(both), head_dim)))
            states.append(self._finish(state, both, rows + step, keys))
        return states

    def _finish(self, state: Tensor, both: Tensor, positions: Tensor, keys: Keys) -> Tensor:
        layer, shape = self.midlayer, self.shape
        cos, sin = self._rope(positions, state.dtype)
        q = split_heads(layer.self_attn.q_proj(both), shape.head_dim)
        q = rotate(q, cos[:, None], sin[:, None]) * shape.head_dim**-0.5
        attended = _attend(q, keys, shape.num_key_value_heads)
        state = state + layer.self_attn.o_proj(ungroup(attended, shape.num_attention_heads))
        out: Tensor = state + layer.mlp(layer.post_attention_layernorm(state))
        return out

    def _rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rope_table(positions, self.shape.head_dim, self.shape.rope_theta, dtype)


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    """x [B,S,H] at rows [B,R] -> [B,R,H]."""
    return torch.gather(x, 1, rows[:, :, None].expand(-1, -1, x.shape[-1]))


def _attend(q: Tensor, keys: Keys, kv_heads: int) -> Tensor:
    """q [B,heads,R,hd] scaled -> [B,kv,group*R,hd]."""
    group = q.shape[1] // kv_heads
    grouped = group_queries(q, kv_heads)
    scores = (grouped @ keys.true_k.transpose(-1, -2)).float()
    scores = scores.masked_fill(~keys.visible.repeat(1, 1, group, 1), float("-inf"))
    own = [
        (grouped * k.repeat(1, 1, group, 1)).sum(-1, keepdim=True).float() for k, _ in keys.diagonal
    ]
    share = torch.softmax(torch.cat([scores, *own], dim=-1), dim=-1).to(q.dtype)
    slots = keys.true_k.shape[2]
    out = share[..., :slots] @ keys.true_v
    for index, (_, v) in enumerate(keys.diagonal):
        out = out + share[..., slots + index, None] * v.repeat(1, 1, group, 1)
    return out


@torch.no_grad()
def warm_start(head: Eagle3, target: Llama, *, layer: int, seed: int) -> None:
    """Start from the target: its layer `layer` on the feature half, small noise on the
    embedding half, and an fc that passes the last tap through."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    hidden = head.shape.hidden_size
    source = target.layers[layer]
    assert isinstance(source, nn.Module)
    weights = {name: value.float() for name, value in source.state_dict().items()}

    def noise(*size: int, scale: float) -> Tensor:
        return torch.randn(*size, generator=generator) * scale

    mid = head.midlayer
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = getattr(mid.self_attn, name)
        known = weights[f"self_attn.{name}.weight"]
        linear.weight.copy_(torch.cat((noise(*known.shape, scale=0.02), known), dim=1))
    mid.self_attn.o_proj.weight.copy_(weights["self_attn.o_proj.weight"])
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(mid.mlp, name).weight.copy_(weights[f"mlp.{name}.weight"])
    mid.hidden_norm.weight.copy_(weights["input_layernorm.weight"])
    mid.input_layernorm.weight.fill_(1.0)
    mid.post_attention_layernorm.weight.copy_(weights["post_attention_layernorm.weight"])
    head.norm.weight.copy_(target.norm.weight)
    width = head.fc.in_features
    head.fc.weight.copy_(noise(hidden, width, scale=0.002))
    head.fc.weight[:, width - hidden :] += torch.eye(hidden)
