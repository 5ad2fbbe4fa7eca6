"""From logits to a token: penalties, temperature, top-k, top-p, min-p, and the random stream.

The order is that of Hugging Face: repetition penalty, temperature, top-k, top-p, min-p, each
acting on what the one before has left. Masks come before all of them: whoever has one sets
the logits of forbidden tokens to -inf first.

The random stream is a function of (seed, position, purpose) and has no state. Verification
consumes the numbers of a position only when it commits that position, and a draft that is
thrown away has influenced nothing, so a number may be drawn again after a rejection and the
output law stays exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from whiflash_engine.config import SamplingConfig
from whiflash_engine.errors import NumericsError


def uniform(seed: int, position: int, purpose: str) -> float:
    """A number in [0, 1), a pure function of its arguments, equal on every platform."""
    digest = hashlib.blake2b(f"{seed}:{position}:{purpose}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def argmax(logits: Tensor) -> list[int]:
    """(r, V) -> r indices, the first among equals."""
    # numpy's argmax is vectorised on the CPU where torch's is not: 24 against 325 us for 8x49152.
    if logits.device.type == "cpu" and logits.dtype is torch.float32:
        return [int(i) for i in logits.detach().numpy().argmax(axis=1)]
    return [int(i) for i in logits.argmax(dim=1).tolist()]


def penalise(
    logits: Tensor, penalty: float, seen: Sequence[int], draft: Sequence[int] = ()
) -> Tensor:
    """Repetition penalty (CTRL, arXiv 1909.05858, section 4.1; signs as in Hugging Face).

    logits: (r, V); seen: all committed ids, prompt included; draft: the ids between them and
    row i are draft[:i]. A seen token's logit is divided by `penalty` if positive, multiplied
    if not. Returns `logits` itself when there is nothing to do, a new tensor otherwise.
    """
    if penalty == 1.0:
        return logits
    out = logits.clone()
    met = set(seen)
    ids = torch.tensor(sorted(met), dtype=torch.long, device=logits.device)
    out[:, ids] = _penalised(out[:, ids], penalty)
    for row, token in enumerate(draft[: logits.shape[0] - 1], start=1):
        if token not in met:
            met.add(token)
            out[row:, token] = _penalised(out[row:, token], penalty)
    return out


def _penalised(logits: Tensor, penalty: float) -> Tensor:
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def warp(
    logits: Tensor, config: SamplingConfig, seen: Sequence[int] = (), draft: Sequence[int] = ()
) -> Tensor:
    """All of it: (r, V) float32 logits -> (r, V) float32 probabilities; temperature > 0.

    `seen` and `draft` as in `penalise`.
    """
    return distribution(penalise(logits, config.repetition_penalty, seen, draft), config)


def distribution(logits: Tensor, config: SamplingConfig) -> Tensor:
    """`warp` without the repetition penalty; each row needs a finite logit.

    Tokens that tie at the edge of top-k or top-p all stay, so that the result does not depend
    on the order in which a sort leaves equals.
    """
    # The peak goes first, or a tiny temperature would overflow.
    probs = ((logits - logits.amax(dim=1, keepdim=True)) / config.temperature).softmax(dim=1)
    if config.top_k or config.top_p < 1.0 or config.min_p:
        for row in probs:
            row.masked_fill_(row < _edge(row, config), 0.0)
        probs /= probs.sum(dim=1, keepdim=True)
    return probs


def _edge(probs: Tensor, config: SamplingConfig) -> Tensor:
    """The smallest of (V,) probabilities that top-k, top-p and min-p all keep.

    top-p (arXiv 1904.09751, section 3.1): a token stays while the larger ones together have
    less than top_p of what top-k has left. min-p (arXiv 2407.01082): it stays if it has at
    least min_p times the probability of the largest. The largest always stays.
    """
    vocab = probs.shape[0]
    if 0 < config.top_k < vocab:
        head = probs.topk(config.top_k).values
        edge, total = head[-1], head.sum()
    elif config.top_p < 1.0:
        # All the tokens below this floor have less than half of the mass that top-p drops, so
        # that it cuts above them. Sorting what is left is a small fraction of a full sort.
        floor = (1.0 - config.top_p) / (2 * vocab)
        head = probs[probs >= floor].sort(descending=True).values
        edge, total = head[-1], probs.sum()
    else:
        head = probs.amax(dim=0, keepdim=True)
        edge, total = probs.new_zeros(()), head
    if config.top_p < 1.0:
        before = head.cumsum(dim=0, dtype=torch.float64) - head
        edge = head[(before < config.top_p * total).sum().clamp(min=1) - 1]
    return torch.maximum(edge, config.min_p * head[0])


def draw(weights: Tensor, number: float) -> int:
    """Inverse CDF: (V,) weights, not necessarily normalised, and a number in [0, 1) -> index.

    Never returns an index of weight 0. Raises NumericsError unless the weights have a
    positive finite sum.
    """
    cdf = weights.cumsum(dim=0, dtype=torch.float64)
    total = float(cdf[-1])
    if not 0.0 < total < float("inf"):
        raise NumericsError(f"cannot sample from weights that add up to {total}")
    # number <= 1 - 2^-53, so that number * total < total also after rounding.
    edge = torch.tensor(number * total, dtype=torch.float64, device=cdf.device)
    return int(torch.searchsorted(cdf, edge, right=True))


class Sampler:
    """The sampling rules of one generation; implements `Chooser` for the drafters."""

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config

    @property
    def config(self) -> SamplingConfig:
        return self._config

    def uniform(self, position: int, purpose: str) -> float:
        """The stream's number for one purpose at one absolute position."""
        return uniform(self._config.seed, position, purpose)

    def choose(self, logits: Tensor, position: int) -> tuple[int, Tensor | None]:
        """A draft token: (draft vocab,) logits -> index into them and its distribution.

        position: absolute, of the token being drafted; each token of a round needs its own.
        Greedy gives None for the distribution. Drafts are warped like the target, except for
        the repetition penalty: q may be anything, and p alone decides what comes out.
        """
        rows = logits.unsqueeze(0)
        if self._config.greedy:
            return argmax(rows)[0], None
        q = distribution(rows.float(), self._config)[0]
        return draw(q, self.uniform(position, "draft")), q
