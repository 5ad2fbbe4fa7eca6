"""What a drafter can say: a reduced vocabulary, and the words of the text at hand.

The head is most of a small drafter's work, so it knows only the few thousand tokens that the
target writes most (EAGLE-3's `d2t`/`t2d`). Names and values that a tool call copies from the
prompt are often not among them. Where the head consists of the target's own rows, those of any
other token can stand beside it: `ContextWords` adds the tokens that a sequence has met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from whiflash_engine.drafters.base import scatter
from whiflash_engine.drafters.rounded import RoundedLinear, draft_linear
from whiflash_engine.layers import own_kernels
from whiflash_engine.linear import Linear
from whiflash_engine.target.base import Target


class ContextWords:
    """Tokens of one sequence that a drafter's head lacks, in the order they were met."""

    def __init__(self, target: Target, outside: bytes) -> None:
        """outside: for every target id 1 where the head lacks it; empty: nothing is added."""
        self._target, self._outside = target, outside
        self._looked_at = 0
        self._places: dict[int, int] = {}
        self._room = target.head_rows(torch.zeros(0, dtype=torch.long, device=target.device))

    @property
    def ids(self) -> list[int]:
        return list(self._places)

    @property
    def rows(self) -> Tensor:
        """(words, hidden), of the target's head."""
        return self._room[: len(self._places)]

    def learn(self, tokens: Sequence[int]) -> None:
        """tokens: all committed ids; only those not looked at yet are."""
        if not self._outside:
            return
        new, before = [], len(self._places)
        for place in range(self._looked_at, len(tokens)):
            token = tokens[place]
            if self._outside[token] and token not in self._places:
                self._places[token] = place
                new.append(token)
        self._looked_at = len(tokens)
        if new:
            ids = torch.tensor(new, device=self._room.device)
            if len(self._places) > len(self._room):
                grown = self._room.new_empty(2 * len(self._places), self._room.shape[1])
                grown[:before] = self._room[:before]
                self._room = grown
            self._room[before : len(self._places)] = self._target.head_rows(ids)

    def crop(self, length: int) -> None:
        """Forget what was met at places >= length. Absolute and idempotent."""
        self._looked_at = min(self._looked_at, length)
        self._places = {token: at for token, at in self._places.items() if at < length}


class DraftHead:
    """Logits over a drafter's vocabulary and a sequence's words, and what they stand for."""

    def __init__(self, target: Target, weights: Mapping[str, Tensor]) -> None:
        """weights: `lm_head.weight`, else the target's rows are used; `draft_ids` int64, where
        the vocabulary is reduced."""
        self._target = target
        self._ids = weights.get("draft_ids")
        self._list: list[int] | None = None if self._ids is None else self._ids.tolist()
        own = weights.get("lm_head.weight")
        self._linear = draft_linear(target.head_rows(self._ids) if own is None else own)
        self._outside = b""
        if own is None and self._list is not None:
            inside = set(self._list)
            self._outside = bytes(i not in inside for i in range(target.config.vocab_size))

    @property
    def linear(self) -> Linear | RoundedLinear:
        """(n, hidden) -> (n, vocabulary), without a sequence's words."""
        return self._linear

    @property
    def ids(self) -> Sequence[int] | None:
        """What the vocabulary's tokens are to the target, None for the same."""
        return self._list

    def new_words(self) -> ContextWords:
        return ContextWords(self._target, self._outside)

    def __call__(self, x: Tensor, words: ContextWords) -> Tensor:
        """(n, hidden) -> (n, vocabulary + words) float32 logits."""
        logits = self._linear(x)
        if not len(words.rows):
            return logits.float()
        own = own_kernels(x, fits=True)
        if own is not None:  # in the kernels' threads alone; see `law`
            more = own.dots(words.rows, x)
            return torch.from_numpy(np.concatenate((logits.numpy(), more.numpy()), axis=1))
        return torch.cat([logits, x @ words.rows.T], dim=1).float()

    def tokens(self, indices: Sequence[int], words: ContextWords) -> list[int]:
        """Target ids of indices into the logits."""
        if self._list is None:
            return list(indices)
        known, more = len(self._list), words.ids
        return [self._list[i] if i < known else more[i - known] for i in indices]

    def scatter(self, q: Tensor | None, words: ContextWords) -> Tensor | None:
        """Distributions over the logits' columns -> over the target's vocabulary."""
        ids = self._ids
        if ids is not None and words.ids:
            ids = torch.cat([ids, torch.tensor(words.ids, device=ids.device)])
        return scatter(q, ids, self._target.config.vocab_size)
