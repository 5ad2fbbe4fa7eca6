"""How likely the committed tokens were to the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whiflash_engine.events import TokenLogprob


def logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[TokenLogprob, ...]:
    """(r, V) raw logits, row i the one that token i was judged by; r >= len(tokens)."""
    rows = logits[: len(tokens)].float().log_softmax(dim=1)
    own = rows.gather(1, torch.tensor([tokens], device=rows.device).T)
    best = rows.topk(min(top, rows.shape[1]), dim=1)
    values, ids = torch.cat((own, best.values), 1).tolist(), best.indices.tolist()
    return tuple(
        TokenLogprob(token, value, tuple(zip(found, others, strict=True)))
        for token, (value, *others), found in zip(tokens, values, ids, strict=True)
    )
