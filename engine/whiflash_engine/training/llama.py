"""A plain Llama forward for training: right-padded batches, no cache.

Parameter names are those of the published checkpoints, so loading is `load_state_dict`.
Right padding needs no mask under causal attention (nothing real looks at a later position),
which keeps scaled_dot_product_attention on its fast path; this is where most of the time of
a general implementation goes on a CPU. Only packed conversations bring a mask, their `Layout`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.checkpoints.weights import load_config, load_weights
from whiflash_engine.config import ModelConfig
from whiflash_engine.devices import choose_dtype
from whiflash_engine.errors import CheckpointError


def trainable_config(folder: Path) -> ModelConfig:
    """The engine's reading of a model folder.

    CheckpointError for a variant that `Llama` does not compute: its features would be wrong,
    and nothing would tell.
    """
    config = load_config(folder)
    # what has a default sets a model apart from a plain Llama; so will what is added later
    variants: dict[str, tuple[object, object]] = {
        field.name: (getattr(config, field.name), field.default)
        for field in fields(config)
        if field.default is not MISSING and field.name != "tie_embeddings"
    }
    variants["rope_type"] = (config.rope.kind, "default")
    for name, (value, plain) in variants.items():
        if value != plain:
            raise CheckpointError(
                folder / "config.json", f"{name}={value!r}: only {plain!r} can be trained for"
            )
    return config


@dataclass(frozen=True)
class Layout:
    """Where tokens stand and what they see, if not all that comes before them in the sequence."""

    positions: Tensor
    """int64 [B,T]."""
    visible: Tensor
    """bool [B,1,T,T]: may the query (third axis) see the key (fourth)?"""


def rope_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [..., head_dim] for integer positions [...]; half-split layout."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions[..., None].float() * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., head_dim] with tables that broadcast against it."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,T,H] -> q [B,heads,T,hd], k and v [B,kv,T,hd], rotated."""
        lead = x.shape[:-1]
        q = self.q_proj(x).view(*lead, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(*lead, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(*lead, self.kv_heads, self.head_dim).transpose(1, 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x, cos, sin)
        keys, values = k, v
        if visible is not None and x.is_cuda:
            # under a mask a GPU's fast kernels want as many KV heads as query heads; without them
            # all scores of a layer stand in memory
            group = self.heads // self.kv_heads
            keys, values = (part.repeat_interleave(group, dim=1) for part in (k, v))
        out = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=visible, is_causal=visible is None, enable_gqa=True
        )
        return self.o_proj(out.transpose(1, 2).flatten(2)), k, v


class MLP(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.self_attn(self.input_layernorm(x), cos, sin, visible)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Llama(nn.Module):
    """Token ids in, hidden states out. `embed_tokens` doubles as the head when tied."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    @property
    def head_weight(self) -> Tensor:
        """The rows [V,H] that turn a normed hidden state into logits."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, ids: Tensor, layout: Layout | None = None) -> Tensor:
        """Normed last hidden states [B,T,H] of right-padded ids [B,T]."""
        states, _ = self.states(ids, taps=(), layout=layout)
        return states

    def states(
        self, ids: Tensor, taps: tuple[int, ...], layout: Layout | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Normed last hidden and the residual stream at boundary indices `taps`
        (0 = embeddings, k = after k layers; the `hidden_states[k]` convention)."""
        x = self.embed_tokens(ids)
        places = torch.arange(ids.shape[1]) if layout is None else layout.positions[:, None]
        cos, sin = rope_table(places, self.config.head_dim, self.config.rope.theta, x.dtype)
        visible = None if layout is None else layout.visible
        kept = {0: x} if 0 in taps else {}
        for index, layer in enumerate(self.layers, start=1):
            x, _, _ = layer(x, cos, sin, visible)
            if index in taps:
                kept[index] = x
        return self.norm(x), [kept[tap] for tap in taps]


def load_llama(folder: Path, dtype: torch.dtype | None = None) -> Llama:
    """Read a model folder (config.json, *.safetensors) into a frozen `Llama`.

    It stands on the current device (`with torch.device(...)`), as all that training makes.
    dtype: None takes what that is fast at.
    """
    device = torch.get_default_device()
    config = trainable_config(folder)
    weights = load_weights(folder, dtype or choose_dtype(None, device), device)
    with torch.device("meta"):
        model = Llama(config)
    bare = {name.removeprefix("model."): weight for name, weight in weights.items()}
    model.load_state_dict(bare, strict=True, assign=True)
    return model.requires_grad_(False).eval()
