"""The acceptance rule: what of a proposal the target's own distribution lets through.

In words. Let p_i be the target's distribution for draft token i after masks, penalties,
temperature and truncation, and q_i the one that the drafter drew it from.

Greedy: accept draft tokens as long as each equals the argmax of its row; the bonus token is the
argmax of the row after the last accepted one.

Sampled (Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318): accept
draft token x with probability min(1, p_i(x) / q_i(x)); at the first rejection the bonus token is
drawn from max(0, p_i - q_i), normalised; after a fully accepted draft from the next row's p. A
proposal without q is one-hot: accept with probability p_i(x), else draw from p_i without x.
Either way every committed token has exactly the law p, whatever the drafter does.

A draft token that the masks forbid has p_i(x) = 0 and is rejected like any other: pass the
whole proposal together with the logits of the rows up to and including that token's. Cutting
it off the proposal instead would draw the bonus token from p where the residual is due, and
favour the tokens that q prefers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from whiflash_engine.drafters.base import Proposal
from whiflash_engine.errors import NumericsError
from whiflash_engine.law import distribution, draw, masked, residual
from whiflash_engine.layers import own_kernels
from whiflash_engine.sampling import Sampler, argmax, peaks, penalise

_NEEDS_BONUS = "the last row's draft token is allowed, so the logits after it are needed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round commits.

    accepted: draft tokens that passed. tokens: these and the bonus token.
    entropy: nats, of the target's distribution that the bonus token came from: the raw
        logits over the full vocabulary at temperature 1, before masks and warping
        (WhiFlash, arXiv 2606.07710, section on WhiFlash-Entropy).
    """

    accepted: int
    tokens: tuple[int, ...]
    entropy: float


def verify(
    proposal: Proposal,
    logits: Tensor,
    sampler: Sampler,
    *,
    seen: Sequence[int],
    position: int,
    masks: Tensor | None = None,
) -> Outcome:
    """Judge a proposal of k tokens. Pure: same arguments, same outcome.

    logits: (r, V) float32, 1 <= r <= k + 1; row i is the target's for draft token i, row k
        the one after the draft. r <= k is for drafts whose token r - 1 the masks forbid.
    seen: all committed ids x_0..x_m, prompt and last bonus token included.
    position: absolute position of the first token that this round commits, m + 1.
    masks: (r, V) bool, True where a token is allowed; None allows all. On any device: greedy
        decoding looks at one entry of most rows.

    Raises NumericsError, before anything is decided, if a logit is NaN or +inf or if a row
    has no finite logit (among the allowed ones).
    """
    rows = logits.shape[0]
    if not 1 <= rows <= len(proposal.tokens) + 1:
        raise ValueError(f"{rows} rows of logits for {len(proposal.tokens)} draft tokens")
    draft = proposal.tokens[:rows]
    scores = penalise(logits, sampler.config.repetition_penalty, seen, draft)
    best = _best(scores)
    if sampler.config.greedy:
        accepted, bonus = _greedy(draft, best, scores, masks)
    else:
        accepted, bonus = _sampled(proposal, scores, sampler, position, masks)
    return Outcome(accepted, (*draft[:accepted], bonus), entropy(logits[accepted]))


def entropy(logits: Tensor) -> float:
    """(V,) logits -> entropy of their softmax, in nats."""
    own = own_kernels(logits[None], logits.shape[0] % 8 == 0)
    if own is not None:
        return own.entropy(logits)
    # e^-200 is 0 in float32, and 0 * -200 is 0 where 0 * -inf would be NaN.
    x = (logits - logits.max()).clamp_(min=-200.0)
    weights = x.exp()
    total = weights.sum()
    return max(0.0, float(total.log() - (weights @ x) / total))


def _best(scores: Tensor) -> list[int]:
    """The argmax of each row. NumericsError unless all of them are finite."""
    best, values = peaks(scores)
    # That of a row is a NaN if there is one, else +inf if there is, and -inf if all are.
    _require_finite(values)
    return best


def _greedy(
    draft: Sequence[int], best: Sequence[int], scores: Tensor, masks: Tensor | None
) -> tuple[int, int]:
    for row, token in enumerate(best):
        # most rows' best is allowed anyway, so only the others are masked
        if masks is not None and not masks[row, token]:
            (token,) = argmax(_masked(scores[row : row + 1], masks[row]))
        if row == len(draft) or token != draft[row]:
            return row, token
    raise ValueError(_NEEDS_BONUS)


def _sampled(
    proposal: Proposal, scores: Tensor, sampler: Sampler, position: int, masks: Tensor | None
) -> tuple[int, int]:
    # Row by row: rows after a rejection cost nothing, and one row stays in the cache.
    for row in range(scores.shape[0]):
        score = scores[row : row + 1]
        if masks is not None:
            score = _masked(score, masks[row])
        p = distribution(score, sampler.config)[0]
        if row == len(proposal.tokens):
            return row, draw(p, sampler.uniform(position + row, "sample"))
        token = proposal.tokens[row]
        q = None if proposal.q is None else proposal.q[row]
        made = 1.0 if q is None else float(q[token])
        if not sampler.uniform(position + row, "accept") * made < float(p[token]):
            rest = residual(p, token, q)
            return row, draw(rest, sampler.uniform(position + row, "sample"))
    raise ValueError(_NEEDS_BONUS)


def _masked(score: Tensor, mask: Tensor) -> Tensor:
    """(1, V), with forbidden tokens at -inf. NumericsError if none is left."""
    score = masked(score, mask)
    _require_finite(peaks(score)[1])
    return score


def _require_finite(values: Iterable[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise NumericsError("the target's logits are not finite, or no allowed token has one")
