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

import numpy as np
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
    if _suits_numpy(logits):
        return [int(i) for i in logits.detach().numpy().argmax(axis=1)]
    return [int(i) for i in logits.argmax(dim=1).tolist()]


def peaks(logits: Tensor) -> tuple[list[int], list[float]]:
    """(r, V) -> `argmax`, and what stands there: a NaN if the row has one."""
    if _suits_numpy(logits):
        places = argmax(logits)
        values = logits.detach().numpy()
        return places, [float(values[row, place]) for row, place in enumerate(places)]
    # in one piece: every question to a GPU waits for all that it was told to do before
    values, places = torch.stack([x.double() for x in logits.max(dim=1)]).tolist()
    return [int(i) for i in places], values


def _suits_numpy(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype is torch.float32


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


def distribution(logits: Tensor, config: SamplingConfig) -> Tensor:
    """All but the penalty: (r, V) float32 logits -> (r, V) float32 probabilities.

    Temperature > 0; each row needs a finite logit.
    Tokens that tie at the edge of top-k or top-p all stay, so that the result does not depend
    on the order in which a sort leaves equals.
    """
    # The peak goes first, or a tiny temperature would overflow.
    probs = ((logits - logits.amax(dim=1, keepdim=True)) / config.temperature).softmax(dim=1)
    if config.top_k or config.top_p < 1.0 or config.min_p:
        edges = torch.stack([_edge(row, config) for row in probs])
        # ones and zeros as floats: a mask of bools takes five times as long on a CPU
        probs *= probs.clone().ge_(edges[:, None])
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
        # that it cuts above them. On a CPU sorting what is left is a small fraction of a full sort.
        floor = (1.0 - config.top_p) / (2 * vocab)
        head = _descending(probs, floor)
        edge, total = head[-1], probs.sum()
    else:
        head = probs.amax(dim=0, keepdim=True)
        edge, total = probs.new_zeros(()), head
    if config.top_p < 1.0:
        before = head.cumsum(dim=0, dtype=torch.float64) - head
        # by `take`, since an index in brackets has to be known to the program
        edge = head.take((before < config.top_p * total).sum().clamp(min=1) - 1)
    return torch.maximum(edge, config.min_p * head[0])


def _descending(probs: Tensor, floor: float) -> Tensor:
    """Those of (V,) probabilities that reach the floor, and perhaps more, the largest first."""
    # numpy sorts with vectors on the CPU where torch does not: 0.2 against 7 ms for 49152.
    if _suits_numpy(probs):
        values = probs.numpy()
        return torch.from_numpy(np.sort(values[values >= floor])).flip(0)
    return probs.sort(descending=True).values  # a GPU would have to tell how many reach it


def draw(weights: Tensor, number: float) -> int:
    """Inverse CDF: (V,) weights, not necessarily normalised, and a number in [0, 1) -> index.

    Never returns an index of weight 0. Raises NumericsError unless the weights have a
    positive finite sum.
    """
    cdf = weights.cumsum(dim=0, dtype=torch.float64)
    # number <= 1 - 2^-53, so that number * total < total also after rounding.
    place = torch.searchsorted(cdf, cdf[-1:] * number, right=True)
    total, index = torch.cat((cdf[-1:], place.double())).tolist()
    if not 0.0 < total < float("inf"):
        raise NumericsError(f"cannot sample from weights that add up to {total}")
    return int(index)


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

    def choose(self, logits: Tensor, position: int) -> tuple[list[int], Tensor | None]:
        """Draft tokens: (n, draft vocab) logits -> n indices into them, each from its own row,
        and the rows' distributions.

        position: absolute, of the first of the tokens, which follow each other; every token of a
        round needs its own. Greedy gives None for the distributions. Drafts are warped like the
        target, except for the repetition penalty: q may be anything, and p alone decides what
        comes out.
        """
        if self._config.greedy:
            return argmax(logits), None
        q = distribution(logits.float(), self._config)
        numbers = (self.uniform(position + i, "draft") for i in range(len(q)))
        return [draw(row, number) for row, number in zip(q, numbers, strict=True)], q
