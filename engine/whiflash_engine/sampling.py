"""From logits to a token: the repetition penalty, the greedy choice, and the random stream.

The order is that of Hugging Face: repetition penalty, temperature, top-k, top-p, min-p, each
acting on what the one before has left; the last four are `law`'s. Masks come before all of them:
whoever has one sets the logits of forbidden tokens to -inf first.

The random stream is a function of (seed, position, purpose) and has no state. Verification
consumes the numbers of a position only when it commits that position; a draft has numbers of its
own, by where it starts, which within a generation is never the same twice. So whatever becomes of
a draft, the next one may depend on it, in its arm or its length, and the output law stays exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from whiflash_engine.config import SamplingConfig
from whiflash_engine.law import distribution, draw, suits_numpy


def uniform(seed: int, position: int, purpose: str) -> float:
    """A number in [0, 1), a pure function of its arguments, equal on every platform."""
    digest = hashlib.blake2b(f"{seed}:{position}:{purpose}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def argmax(logits: Tensor) -> list[int]:
    """(r, V) -> r indices, the first among equals."""
    # numpy's argmax is vectorised on the CPU where torch's is not: 24 against 325 us for 8x49152.
    if suits_numpy(logits):
        return [int(i) for i in logits.detach().numpy().argmax(axis=1)]
    return [int(i) for i in logits.argmax(dim=1).tolist()]


def peaks(logits: Tensor) -> tuple[list[int], list[float]]:
    """(r, V) -> `argmax`, and what stands there: a NaN if the row has one."""
    if suits_numpy(logits):
        places = argmax(logits)
        values = logits.detach().numpy()
        return places, [float(values[row, place]) for row, place in enumerate(places)]
    # in one piece: every question to a GPU waits for all that it was told to do before
    values, places = torch.stack([x.double() for x in logits.max(dim=1)]).tolist()
    return [int(i) for i in places], values


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
    own = suits_numpy(logits)  # whose copy is made in one thread; see `law`
    out = torch.from_numpy(logits.numpy(force=True).copy()) if own else logits.clone()
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


class Sampler:
    """The sampling rules of one generation; implements `Chooser` for the drafters."""

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config

    @property
    def config(self) -> SamplingConfig:
        return self._config

    @property
    def greedy(self) -> bool:
        return self._config.greedy

    def uniform(self, position: int, purpose: str) -> float:
        """The stream's number for one purpose at one absolute position."""
        return uniform(self._config.seed, position, purpose)

    def choose(self, logits: Tensor, position: int, start: int) -> tuple[list[int], Tensor | None]:
        """Draft tokens: (n, draft vocab) logits -> n indices into them, each from its own row,
        and the rows' distributions.

        position: absolute, of the first of the tokens, which follow each other; every token of a
        round needs its own. start: absolute, of the round's draft. Greedy gives None for the
        distributions. Drafts are warped like the target, except for the repetition penalty: q may
        be anything, and p alone decides what comes out.
        """
        if self._config.greedy:
            return argmax(logits), None
        q = distribution(logits.float(), self._config)
        numbers = (self.uniform(position + i, f"draft from {start}") for i in range(len(q)))
        return [draw(row, number) for row, number in zip(q, numbers, strict=True)], q
