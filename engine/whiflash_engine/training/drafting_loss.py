"""Soft cross-entropy through a frozen head, without keeping the logits.

The gradient of the loss with respect to the head's input is (softmax - teacher) @ head, so it
is computed in the forward pass, chunk by chunk, and only [N,H] is kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK, CHUNK_GPU = 1024, 8192
"""Rows whose logits stand in memory at a time."""


@dataclass(frozen=True)
class Rows:
    """What the rows of one loss call are compared with."""

    teacher: Tensor
    """[M,Vd] target probabilities over the draft vocabulary."""
    index: Tensor
    """int64 [N]: which teacher row belongs to each prediction."""
    weight: Tensor
    """float32 [N]; rows that count for nothing have weight 0."""


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        head: Tensor,
        teacher: Tensor,
        index: Tensor,
        weight: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        scale = 1.0 / weight.sum().clamp_min(1e-6)
        size = CHUNK_GPU if hidden.is_cuda else CHUNK
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            logits = F.linear(hidden[part], head).float()
            wanted = teacher[index[part]].float()
            normaliser = logits.logsumexp(-1)
            loss = normaliser - (wanted * logits).sum(-1)
            total += (loss * weight[part]).sum()
            logits.sub_(normaliser[:, None]).exp_().sub_(wanted)
            logits.mul_((weight[part] * scale)[:, None])
            gradient[part] = logits.to(hidden.dtype) @ head
        ctx.save_for_backward(gradient)
        return total * scale

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, outer: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * outer.to(gradient.dtype), None, None, None, None


def frozen_head_loss(hidden: Tensor, head: Tensor, rows: Rows) -> Tensor:
    """Weighted mean of -sum_v p(v) log q(v); hidden [N,H], head [Vd,H] (not trained)."""
    loss: Tensor = _FrozenHeadLoss.apply(hidden, head, rows.teacher, rows.index, rows.weight)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def teacher_probabilities(last: Tensor, head: Tensor) -> Tensor:
    """Target distribution over the draft vocabulary, [M,Vd] in bfloat16, from the normed last
    hidden states [M,H] and the head's selected rows [Vd,H]."""
    return torch.softmax(F.linear(last, head).float(), dim=-1).to(torch.bfloat16)
