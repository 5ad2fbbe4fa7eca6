"""One pass of the target over a draft, and what it lets through. Nothing is committed."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from whiflash_engine.drafters.base import Proposal
from whiflash_engine.sampling import Sampler
from whiflash_engine.sequence import SequenceState
from whiflash_engine.target.base import Target, TargetOutput
from whiflash_engine.verify import Outcome, verify


@dataclass(frozen=True, slots=True)
class Verdict:
    """output: of the pass over [x_m, drafts...], as far as the grammar allows them.
    masking: seconds that the grammar's masks took."""

    outcome: Outcome
    output: TargetOutput
    masking: float


def judge(target: Target, sequence: SequenceState, proposal: Proposal, sampler: Sampler) -> Verdict:
    """The target's cache must end where the sequence does; the draft's rows stand behind it then,
    until a commit or a crop."""
    legal, masks, masking = len(proposal.tokens), None, 0.0
    if sequence.constraint is not None:
        started = perf_counter()
        legal, masks = sequence.constraint.masks(proposal.tokens)
        masking = perf_counter() - started
    # the target never sees past the first token that the grammar forbids, but `verify`
    # judges that one too: its rejection is part of the law of the output
    passed = [sequence.tokens[-1], *proposal.tokens[:legal]]
    output = target.forward(passed, sequence.cache, rows=legal + 1)
    outcome = verify(
        proposal, output.logits, sampler, seen=sequence.tokens,
        position=len(sequence.tokens), masks=masks,
    )  # fmt: skip
    return Verdict(outcome, output, masking)
