"""What both drafters' trainers share: layers with float32 masters, attention, warm start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.training.batching import epoch_batches
from whiflash_engine.training.corpus import Corpus, Sample
from whiflash_engine.training.llama import Llama


class Linear(nn.Linear):
    """No bias; the float32 master is rounded to the input's dtype at every use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class MLP(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate)
        self.up_proj = Linear(hidden, intermediate)
        self.down_proj = Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


@dataclass(frozen=True)
class DrafterShape:
    """Sizes that both drafters take from the target, and the draft vocabulary."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int
    draft_vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True)
class Batch:
    """Right-padded samples. Position t of a row has features iff t < positions[row]."""

    ids: Tensor
    """int64 [B,T+1]."""
    taps: Tensor
    """bfloat16 [B,T,taps,H]."""
    last: Tensor
    """bfloat16 [B,T,H]: the target's normed last hidden state."""
    starts: tuple[int, ...]
    """Prompt lengths: the first response token's position."""
    positions: tuple[int, ...]
    """Positions with features; the last token of row b is ids[b, positions[b]]."""
    forced: tuple[tuple[int, ...], ...]
    """Per row the indices of response tokens that a grammar forced."""
    overruled: tuple[tuple[int, ...], ...]
    """Per row the indices of response tokens where a grammar overruled the target."""


def make_batch(
    corpus: Corpus, samples: Sequence[Sample], dtype: torch.dtype, target: Llama
) -> Batch:
    """With the features that the corpus holds, or else those that the target has now."""
    width = max(sample.positions for sample in samples) + 1
    padded = [
        (*sample.prompt, *sample.response, *[0] * (width - sample.positions - 1))
        for sample in samples
    ]
    ids = torch.tensor(padded)
    stacked = (
        _stored(corpus, samples, dtype)
        if corpus.with_features
        else _computed(target, ids[:, :-1], corpus.taps, dtype)
    )
    return Batch(
        ids=ids,
        taps=stacked[:, :, :-1],
        last=stacked[:, :, -1],
        starts=tuple(len(sample.prompt) for sample in samples),
        positions=tuple(sample.positions for sample in samples),
        forced=tuple(sample.forced for sample in samples),
        overruled=tuple(sample.overruled for sample in samples),
    )


def _stored(corpus: Corpus, samples: Sequence[Sample], dtype: torch.dtype) -> Tensor:
    """[B,T,taps+1,H], zeros behind a row's positions."""
    pieces = [corpus.features(sample) for sample in samples]
    stacked = torch.zeros(len(pieces), max(map(len, pieces)), *pieces[0].shape[1:], dtype=dtype)
    for row, piece in enumerate(pieces):
        stacked[row, : len(piece)] = piece.to(dtype)
    return stacked


@torch.no_grad()
def _computed(target: Llama, ids: Tensor, taps: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The same of ids [B,T]; behind a row's positions stands what nothing looks at."""
    last, kept = target.states(ids, taps)
    return torch.stack([*kept, last], dim=2).to(dtype)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[..., T, heads*hd] -> [..., heads, T, hd]."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(-3, -2)


def group_queries(q: Tensor, kv_heads: int) -> Tensor:
    """[B,heads,R,hd] -> [B,kv,group*R,hd]: the heads of a group are queries of one KV head."""
    batch, heads, rows, head_dim = q.shape
    return q.reshape(batch, kv_heads, heads // kv_heads * rows, head_dim)


def ungroup(x: Tensor, heads: int) -> Tensor:
    """[B,kv,group*R,hd] -> [B,R,heads*hd]."""
    batch, kv_heads, rows, head_dim = x.shape
    per_head = x.reshape(batch, heads, rows * kv_heads // heads, head_dim)
    return per_head.transpose(1, 2).flatten(2)


def drafter_batches(
    samples: Sequence[Sample], size: int, seed: int, epochs: int
) -> list[list[Sample]]:
    """Of all epochs, one after the other."""
    return [
        batch
        for epoch in range(epochs)
        for batch in epoch_batches(samples, size, seed, epoch, _size_key)
    ]


def _size_key(sample: Sample) -> tuple[int, int]:
    """Responses of similar length together (they make the rows), then similar prompts."""
    return len(sample.response) // 32, sample.positions
