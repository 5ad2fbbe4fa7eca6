"""The DFlash drafter as it is trained (arXiv 2602.06036; tensor names of z-lab/dflash).

A block is [clean anchor token, mask, mask, ...]; one pass predicts the token *at* each masked
row. The target's fused features enter every layer as keys and values; context rows have no
queries and are never updated. A block sees the context strictly before its anchor and all of
itself, in both directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whiflash_engine.training.drafter_parts import (
    MLP,
    DrafterShape,
    Linear,
    group_queries,
    split_heads,
)
from whiflash_engine.training.llama import Llama, RMSNorm, rope_table, rotate


class DFlashAttention(nn.Module):
    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden_size, queries)
        self.k_proj = Linear(shape.hidden_size, keys)
        self.v_proj = Linear(shape.hidden_size, keys)
        self.o_proj = Linear(queries, shape.hidden_size)
        self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)


class DFlashLayer(nn.Module):
    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = DFlashAttention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape.hidden_size, shape.intermediate_size)


class DFlash(nn.Module):
    """Parameters under their published names. Embedding and head belong to the target."""

    def __init__(self, shape: DrafterShape, *, layers: int, taps: int) -> None:
        super().__init__()
        self.shape = shape
        self.fc = Linear(taps * shape.hidden_size, shape.hidden_size)
        self.hidden_norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.layers = nn.ModuleList(DFlashLayer(shape) for _ in range(layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, taps: Tensor, blocks: Tensor, anchors: Tensor) -> Tensor:
        """Normed states [B,A,block,H].

        taps [B,T,n_taps,H]: features of positions 0..T-1; blocks [B,A,block,H]: embedded
        [anchor token, mask, ...]; anchors int64 [B,A]: position of each block's first row.
        """
        context = self.hidden_norm(self.fc(taps.flatten(2)))
        length, block = context.shape[1], blocks.shape[2]
        places = anchors[:, :, None] + torch.arange(block)
        rope_context = self._rope(torch.arange(length), context.dtype)
        cos, sin = self._rope(places.flatten(1), context.dtype)
        rope_rows = (cos[:, None], sin[:, None])
        # [B,1,A*block,T]: context strictly before the anchor
        visible = (
            torch.arange(length)
            < anchors[:, :, None].expand(-1, -1, block).flatten(1)[:, None, :, None]
        )
        x = blocks.flatten(1, 2)
        for layer in self.layers:
            assert isinstance(layer, DFlashLayer)
            x = x + _attend(layer, x, context, visible, rope_context, rope_rows, block)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        normed: Tensor = self.norm(x)
        return normed.view(blocks.shape)

    def _rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rope_table(positions, self.shape.head_dim, self.shape.rope_theta, dtype)


def _attend(
    layer: DFlashLayer, x: Tensor, context: Tensor, visible: Tensor,
    rope_context: tuple[Tensor, Tensor], rope_rows: tuple[Tensor, Tensor], block: int,
) -> Tensor:  # fmt: skip
    """Attention of the rows x [B,A*block,H]: one softmax over context and own block.

    The blocks do not see each other, so the part inside the blocks is a small product per
    block; a single masked product over all rows would be mostly masked out.
    """
    attention = layer.self_attn
    head_dim = attention.q_norm.weight.shape[0]
    normed = layer.input_layernorm(x)
    q = rotate(attention.q_norm(split_heads(attention.q_proj(normed), head_dim)), *rope_rows)
    k = rotate(attention.k_norm(split_heads(attention.k_proj(normed), head_dim)), *rope_rows)
    v = split_heads(attention.v_proj(normed), head_dim)
    far_k = attention.k_norm(split_heads(attention.k_proj(context), head_dim))
    far_k = rotate(far_k, *rope_context)
    far_v = split_heads(attention.v_proj(context), head_dim)
    batch, heads, rows, _ = q.shape
    kv = k.shape[1]
    group = heads // kv
    q = group_queries(q * head_dim**-0.5, kv)  # [B,kv,group*rows,hd]
    far = (q @ far_k.transpose(-1, -2)).float()
    far = far.view(batch, kv, group, rows, -1).masked_fill(~visible[:, :, None], float("-inf"))
    # inside the blocks: [B,kv,group,blocks,block,hd] against [B,kv,1,blocks,block,hd]
    tiles = q.view(batch, kv, group, rows // block, block, head_dim)
    near_k = k.view(batch, kv, 1, rows // block, block, head_dim)
    near_v = v.view(batch, kv, 1, rows // block, block, head_dim)
    near = (tiles @ near_k.transpose(-1, -2)).float().view(batch, kv, group, rows, block)
    share = torch.softmax(torch.cat((far, near), dim=-1), dim=-1).to(x.dtype)
    length = far_k.shape[2]
    out = (share[..., :length].reshape(batch, kv, group * rows, length) @ far_v).view(
        batch, kv, group, rows, head_dim
    )
    inside = share[..., length:].reshape(batch, kv, group, rows // block, block, block) @ near_v
    out = out + inside.reshape(batch, kv, group, rows, head_dim)
    merged = out.reshape(batch, heads, rows, head_dim).transpose(1, 2).flatten(2)
    result: Tensor = attention.o_proj(merged)
    return result


@torch.no_grad()
def warm_start(
    drafter: DFlash,
    target: Llama,
    *,
    layers: tuple[int, ...],
    last_tap: int,
    ids: Tensor,
    seed: int,
) -> None:
    """Start from the target: its layers, an fc that passes the last tap through, that tap's
    input norm as hidden_norm. The target has no q and k norms; theirs start at the typical
    size of its q and k on `ids` [B,T], so that attention begins as sharp as the target's."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    _, inputs = target.states(ids, taps=tuple(sorted(set(layers))))
    entering = dict(zip(sorted(set(layers)), inputs, strict=True))
    for layer, index in zip(drafter.layers, layers, strict=True):
        source = target.layers[index]
        assert isinstance(layer, DFlashLayer) and isinstance(source, nn.Module)
        weights = {name: value.float() for name, value in source.state_dict().items()}
        layer.load_state_dict(weights, strict=False)
        x = source.get_submodule("input_layernorm")(entering[index])
        for name in ("q", "k"):
            heads = source.get_submodule(f"self_attn.{name}_proj")(x).float()
            size = heads.view(-1, drafter.shape.head_dim).pow(2).mean().sqrt()
            layer.self_attn.get_submodule(f"{name}_norm").get_parameter("weight").fill_(float(size))
    source = target.layers[last_tap]
    assert isinstance(source, nn.Module)
    drafter.hidden_norm.weight.copy_(
        source.get_submodule("input_layernorm").get_parameter("weight")
    )
    drafter.norm.weight.copy_(target.norm.weight)
    hidden, width = drafter.shape.hidden_size, drafter.fc.in_features
    drafter.fc.weight.copy_(torch.randn(hidden, width, generator=generator) * 0.002)
    drafter.fc.weight[:, width - hidden :] += torch.eye(hidden)
