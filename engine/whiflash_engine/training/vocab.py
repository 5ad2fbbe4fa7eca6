"""The drafters' reduced vocabulary (EAGLE-3's `d2t` / `t2d`).

The head is most of a small drafter's work, so it knows only the tokens that the target
actually writes. What can never be missing: single bytes, special tokens, digits, punctuation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whiflash_engine.errors import ConfigError
from whiflash_engine.training.corpus import Sample


@dataclass(frozen=True)
class DraftVocab:
    """Selected target ids in ascending order; draft id j means target id `ids[j]`."""

    ids: Tensor
    """int64 [Vd]."""
    vocab_size: int

    @property
    def d2t(self) -> Tensor:
        """Offsets: target id = j + d2t[j]."""
        return self.ids - torch.arange(len(self.ids))

    @property
    def t2d(self) -> Tensor:
        """bool [V]: is this target id in the draft vocabulary?"""
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[self.ids] = True
        return mask

    @property
    def draft_of(self) -> Tensor:
        """int64 [V]: draft id of a target id, -1 for those outside."""
        table = torch.full((self.vocab_size,), -1)
        table[self.ids] = torch.arange(len(self.ids))
        return table

    def coverage(self, samples: Iterable[Sample]) -> float:
        """Share of the response tokens that can be drafted: those of the vocabulary, and those
        that stand earlier in the text."""
        inside = set(self.ids.tolist())
        hits = total = 0
        for sample in samples:
            met = inside.union(sample.prompt)
            for token in sample.response:
                hits, total = hits + (token in met), total + 1
                met.add(token)
        return hits / max(total, 1)


def always_needed(texts: Sequence[str], special_ids: Iterable[int]) -> set[int]:
    """Ids that are in every draft vocabulary. `texts[i]` is the decoded token i."""
    needed = set(special_ids)
    for token, text in enumerate(texts):
        bare = text.strip(" ")
        if len(text) == 1 or (bare and len(bare) <= 4 and not any(c.isalpha() for c in bare)):
            needed.add(token)
    return needed


def choose_vocab(
    written: Counter[int], seen: Counter[int], needed: set[int], *, size: int, vocab_size: int
) -> DraftVocab:
    """The needed ids, then the most frequently written ones; `seen` (prompt tokens, which
    replies copy) and the id (low ids are the tokenizer's most frequent merges) break ties."""
    if not 0 < size <= vocab_size:
        raise ConfigError("draft_vocab", size, f"should be between 1 and {vocab_size}")
    ranked = sorted(range(vocab_size), key=lambda t: (-written[t], -seen[t], t))
    chosen = sorted(needed, key=lambda t: (-written[t], -seen[t], t))[:size]
    inside = set(chosen)
    for token in ranked:
        if len(chosen) >= size:
            break
        if token not in inside:
            chosen.append(token)
    return DraftVocab(torch.tensor(sorted(chosen), dtype=torch.int64), vocab_size)
