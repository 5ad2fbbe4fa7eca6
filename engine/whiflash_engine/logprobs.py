"""How likely the committed tokens were to the target."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from whiflash_engine.events import TokenLogprob


def logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[TokenLogprob, ...]:
    """(r, V) raw logits, row i the one that token i was judged by; r >= len(tokens)."""
    rows = logits[: len(tokens)].float().log_softmax(dim=1)
    best = rows.topk(min(top, rows.shape[1]), dim=1)
    return tuple(
        TokenLogprob(
            token,
            float(rows[i, token]),
            tuple(zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)),
        )
        for i, token in enumerate(tokens)
    )
