"""Where a draft ends by itself: when it is unlikely to pass.

A drafter's distribution says how sure it is. Between certainty and none it is too sure: the
square of the largest probability is a fair estimate of the chance that its token passes
(docs/experiments.md, "How sure a draft is"). Every token of a draft costs the same and brings
something only if all before it pass, so a draft goes on while that chance is worth its price.

Whether a token is left out depends on the distribution that it would come from, never on the
token drawn: else those that are left in would be another selection than the target's law allows.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from whiflash_engine.law import suits_numpy


class Ending:
    """Follows one draft. doubt: see `Proposal`."""

    def __init__(self, floor: float) -> None:
        """floor: the chance, 0 to 1, that all of the draft passes, which each token must leave. The
        first may leave less: an arm that never drafts would never be found out to have
        improved."""
        self._floor, self._chance, self._begun = floor, 1.0, False
        self.doubt: float | None = None

    @property
    def over(self) -> bool:
        """Whether no token could be worth it any more, whatever it is."""
        return self._chance < self._floor

    def before(self, chance: float) -> bool:
        """Whether the draft ends before the next token. chance: of `chances`."""
        self._chance *= chance
        ends = self._begun and self.over
        self._begun = True
        if ends:
            self.doubt = chance
        return ends


def chances(logits: Tensor, q: Tensor | None, floor: float) -> list[float]:
    """Of rows' tokens, to pass once all before them have. logits: (n, draft vocabulary) that they
    come from; q: (n, draft vocabulary), their distributions, None for the likeliest tokens.
    floor: 0 asks for none: all are 1."""
    if floor <= 0.0:
        return [1.0] * len(logits)
    if suits_numpy(logits):
        if q is not None:
            largest = q.numpy(force=True).max(axis=1)
        else:
            scores = logits.numpy(force=True)
            largest = 1.0 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
    else:
        largest = (logits.softmax(dim=-1) if q is None else q).amax(dim=1).numpy(force=True)
    return [float(one) ** 2 for one in largest]
