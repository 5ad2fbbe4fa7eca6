"""Probabilities of tokens: temperature, top-k, top-p, min-p, masks, and a draw.

On a CPU all of it is numpy's, in one thread. Torch would share rows of a vocabulary among threads
of its own, which then wait for more of the like, for milliseconds, on the processors that the
kernels' threads want.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whiflash_engine.config import SamplingConfig
from whiflash_engine.errors import NumericsError

_Array = NDArray[np.float32]


def suits_numpy(x: Tensor) -> bool:
    """Whether numpy may look at it where it is."""
    return x.device.type == "cpu" and x.dtype is torch.float32


def distribution(logits: Tensor, config: SamplingConfig) -> Tensor:
    """All but the penalty: (r, V) float32 logits -> (r, V) float32 probabilities.

    Temperature > 0; each row needs a finite logit.
    Tokens that tie at the edge of top-k or top-p all stay, so that the result does not depend
    on the order in which a sort leaves equals.
    """
    cut = bool(config.top_k or config.top_p < 1.0 or config.min_p)
    # The peak goes first, or a tiny temperature would overflow.
    if suits_numpy(logits):
        with np.errstate(over="ignore", invalid="ignore"):  # torch says nothing of them either
            return torch.from_numpy(_distribution(logits.numpy(force=True), config, cut))
    probs = ((logits - logits.amax(dim=1, keepdim=True)) / config.temperature).softmax(dim=1)
    if cut:
        edges = torch.stack([_edge(row, config) for row in probs])
        probs *= probs >= edges[:, None]
        probs /= probs.sum(dim=1, keepdim=True)
    return probs


def _distribution(logits: _Array, config: SamplingConfig, cut: bool) -> _Array:
    found: _Array = logits - logits.max(axis=1, keepdims=True)
    found /= np.float32(config.temperature)
    np.exp(found, out=found)
    found /= found.sum(axis=1, keepdims=True)
    if cut:
        for row in found:
            row *= row >= _edge_of_array(row, config)
        found /= found.sum(axis=1, keepdims=True)
    return found


def _edge(probs: Tensor, config: SamplingConfig) -> Tensor:
    """The smallest of (V,) probabilities that top-k, top-p and min-p all keep.

    top-p (arXiv 1904.09751, section 3.1): a token stays while the larger ones together have
    less than top_p of what top-k has left. min-p (arXiv 2407.01082): it stays if it has at
    least min_p times the probability of the largest. The largest always stays.
    """
    if 0 < config.top_k < len(probs):
        head = probs.topk(config.top_k).values
        edge, total = head[-1], head.sum()
    elif config.top_p < 1.0:
        head = probs.sort(descending=True).values
        edge, total = head[-1], head.sum()
    else:
        head = probs.amax(dim=0, keepdim=True)
        edge, total = probs.new_zeros(()), head
    if config.top_p < 1.0:
        before = head.cumsum(dim=0, dtype=torch.float64) - head
        # by `take`, since an index in brackets has to be known to the program
        edge = head.take((before < config.top_p * total).sum().clamp(min=1) - 1)
    return torch.maximum(edge, config.min_p * head[0])


def _edge_of_array(probs: _Array, config: SamplingConfig) -> np.float32:
    """`_edge`, for numpy."""
    vocab = len(probs)
    edge = np.float32(0)
    if 0 < config.top_k < vocab:
        head = np.sort(np.partition(probs, vocab - config.top_k)[-config.top_k :])[::-1]
        edge, total = head[-1], head.sum()
    elif config.top_p < 1.0:
        # All the tokens below this floor have less than half of the mass that top-p drops, so that
        # it cuts above them; to sort what is left is a small fraction of a full sort.
        head = np.sort(probs[probs >= (1.0 - config.top_p) / (2 * vocab)])[::-1]
        edge, total = head[-1], probs.sum()
    else:
        head = probs.max(keepdims=True)
    if config.top_p < 1.0:
        before = np.cumsum(head, dtype=np.float64) - head
        edge = head[max(int(np.count_nonzero(before < np.float32(config.top_p) * total)), 1) - 1]
    return max(edge, np.float32(config.min_p) * head[0])


def draw(weights: Tensor, number: float) -> int:
    """Inverse CDF: (V,) weights, not necessarily normalised, and a number in [0, 1) -> index.

    Never returns an index of weight 0. Raises NumericsError unless the weights have a
    positive finite sum.
    """
    # number <= 1 - 2^-53, so that number * total < total also after rounding.
    if suits_numpy(weights):
        sums = np.cumsum(weights.numpy(force=True), dtype=np.float64)
        total = float(sums[-1])
        index = int(np.searchsorted(sums, total * number, side="right"))
    else:
        cdf = weights.cumsum(dim=0, dtype=torch.float64)
        place = torch.searchsorted(cdf, cdf[-1:] * number, right=True)
        total, index = torch.cat((cdf[-1:], place.double())).tolist()
    if not 0.0 < total < float("inf"):
        raise NumericsError(f"cannot sample from weights that add up to {total}")
    return int(index)


def residual(p: Tensor, token: int, q: Tensor | None) -> Tensor:
    """max(0, p - q), not normalised; (V,) each, q None is one-hot at `token`."""
    if suits_numpy(p):
        known: _Array = p.numpy(force=True)
        if q is None:
            left = known.copy()
            left[token] = 0.0
        else:
            left = known - q.numpy(force=True)
            np.maximum(left, 0.0, out=left)
        rest, some = torch.from_numpy(left), bool(left.any())
    else:
        rest = p.clone() if q is None else (p - q).clamp_(min=0.0)
        if q is None:
            rest[token] = 0.0
        some = bool(rest.any())
    # Empty only where p and q agree to rounding: then a rejection is itself a rounding error.
    return rest if some else p


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """(1, V) scores, with those that (V,) bools, on any device, do not allow at -inf."""
    if suits_numpy(scores):
        allowed = np.where(mask.numpy(force=True), scores.numpy(force=True), np.float32("-inf"))
        return torch.from_numpy(allowed)
    return scores.masked_fill(~mask.to(scores.device), float("-inf"))
