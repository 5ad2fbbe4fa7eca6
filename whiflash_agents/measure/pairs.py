"""Rounds made by hand: both drafters from the same prefix, or one with forced tokens clamped.

Greedy. Every proposal is verified by the target, so all lengths are those of real rounds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import ArmName
from whiflash_engine.drafters.base import Proposal
from whiflash_engine.judge import judge
from whiflash_engine.offer import offer
from whiflash_engine.router.policies import RouteContext
from whiflash_engine.sampling import Sampler
from whiflash_engine.target.base import TargetOutput
from whiflash_engine.verify import Outcome, entropy


@dataclass(frozen=True, slots=True)
class Pair:
    """What each drafter would have committed from one prefix, bonus token and what a grammar
    forced counted. tried: behind that, how many draft tokens passed, and how many there were, as
    `Round.tried` tells it."""

    context: RouteContext
    lengths: Mapping[ArmName, int]
    tried: Mapping[ArmName, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Filled:
    """A DFlash round under a grammar: committed tokens, and how many of them were forced."""

    length: int
    forced: int


class HandMade:
    """One sequence, moved round by round."""

    def __init__(self, start: PromptStart, grammar: bool) -> None:
        self.start, self.engine = start, start.engine
        self.sequence = start.rewound(grammar)
        self.sampler = Sampler(start.sampling)

    def begin(self) -> bool:
        """False when the sequence is finished."""
        if self.sequence.finish_reason is not None:
            return False
        self.sequence.prefill()
        return True

    def reread(self, text: Sequence[int]) -> Iterator[int]:
        """The places of a text that is known, one after the other, while the sequence stands there:
        one pass of the target serves all of them. Greedy, from the end of the prompt."""
        sequence = self.sequence
        self.begin()
        passed = [sequence.tokens[-1], *text[:-1]]
        output = self.engine.target.forward(passed, sequence.cache, rows=len(passed))
        for i, token in enumerate(text):
            yield i
            row = TargetOutput(output.logits[i:], output.features[i:], output.hidden[i:])
            stops, after = self.start.sampling.stop_token_ids, entropy(output.logits[i])
            sequence.commit([token], row, stops, entropy=after)

    def propose(self, arm: ArmName, known: Sequence[int] = ()) -> Proposal:
        sequence, drafter = self.sequence, self.engine.drafters[arm]
        count = min(drafter.max_draft, sequence.room)
        if count < 1:
            return Proposal(())
        state = sequence.drafts[arm]
        drafter.ingest(state, sequence.log, sequence.tokens)
        return drafter.propose(state, sequence.tokens, count, self.sampler, known)

    def judge(self, proposal: Proposal) -> tuple[Outcome, TargetOutput]:
        """One pass of the target; nothing is committed. The outcome has what would be."""
        self.sequence.cache.crop(self.sequence.processed)
        verdict = judge(self.engine.target, self.sequence, proposal, self.sampler)
        return self._cut(verdict.outcome), verdict.output

    def _cut(self, outcome: Outcome) -> Outcome:
        """Nothing behind the first stop token, as `SequenceState.commit` cuts it."""
        stops = self.start.sampling.stop_token_ids
        stop = next((i for i, token in enumerate(outcome.tokens) if token in stops), None)
        if stop is None:
            return outcome
        tokens = outcome.tokens[: stop + 1]
        return replace(outcome, tokens=tokens, accepted=min(outcome.accepted, len(tokens)))

    def commit(self, outcome: Outcome, output: TargetOutput) -> None:
        """Of the proposal that was judged last."""
        stops = self.start.sampling.stop_token_ids
        self.sequence.commit(outcome.tokens, output, stops, entropy=outcome.entropy)


def pairs(start: PromptStart, grammar: bool, rng: random.Random) -> Iterator[Pair]:
    """Both drafters from every prefix; who moves the text on is drawn, so that the prefixes
    favour neither."""
    hand, arms = HandMade(start, grammar), list(start.engine.drafters)
    while hand.begin():
        rng.shuffle(arms)
        context = offer(hand.sequence, start.engine.drafters, copies=True)
        lengths: dict[ArmName, int] = {}
        tried: dict[ArmName, tuple[int, int]] = {}
        for arm in arms:
            proposal = hand.propose(arm, context.forced)
            outcome, output = hand.judge(proposal)
            lengths[arm] = len(outcome.tokens)
            forced = min(len(context.forced), len(proposal.tokens))
            passed = max(outcome.accepted - forced, 0)
            whole = len(outcome.tokens) > outcome.accepted
            tried[arm] = passed, len(proposal.tokens) - forced if whole else passed
        yield Pair(context, lengths, tried)
        hand.commit(outcome, output)


def filled(start: PromptStart, *, clamp: bool) -> Iterator[Filled]:
    """DFlash alone under the prompt's grammar. clamp: the tokens that the grammar forces next
    stand in the block and in the draft as they are, and DFlash fills in what follows."""
    hand = HandMade(start, grammar=True)
    constraint = hand.sequence.constraint
    assert constraint is not None
    while hand.begin():
        known = constraint.forced(
            min(hand.engine.drafters["diffusion"].max_draft, hand.sequence.room)
        )
        outcome, output = hand.judge(hand.propose("diffusion", known if clamp else ()))
        yield Filled(len(outcome.tokens), min(len(known), len(outcome.tokens)))
        hand.commit(outcome, output)
