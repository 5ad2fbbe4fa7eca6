"""Both drafters from every position of a text that the target writes: what a router learns from.

Greedy, so that the text is known once it has been decoded: what a draft would commit can be read
off it, and one pass of the target over it serves all positions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from whiflash_agents.measure.pairs import HandMade
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import RouterConfig
from whiflash_engine.offer import offer
from whiflash_engine.router.neural import features
from whiflash_engine.target.base import TargetOutput
from whiflash_engine.training.rounds import ARMS, Drafted
from whiflash_engine.verify import entropy


def positions(start: PromptStart, grammar: bool, rng: random.Random) -> Iterator[Drafted]:
    """One a token. Some of them begin a round, of a walk whose arms are drawn: only these tell
    what the drafters got through lately, as in use."""
    text = [token for done in start.run(RouterConfig("ar"), grammar) for token in done.tokens]
    hand = HandMade(start, grammar)
    sequence, engine = hand.sequence, hand.engine
    hand.begin()
    passed = [sequence.tokens[-1], *text[:-1]]
    output = engine.target.forward(passed, sequence.cache, rows=len(passed))
    begins = 0
    for i, token in enumerate(text):
        context = offer(sequence, engine.drafters, copies=True)
        forced = len(context.forced)
        tried: list[tuple[int, int]] = []
        for arm in ARMS:
            draft = hand.propose(arm, context.forced).tokens[forced:]
            tried.append(_got_through(draft, text[i + forced :]))
        if context.hidden is not None:
            yield Drafted(features(context), tried, begins=i == begins)
        if i == begins:
            arm, (accepted, drafted) = rng.choice(list(zip(ARMS, tried, strict=True)))
            sequence.recent.add(arm, accepted, drafted)
            begins += forced + accepted + 1
        row = TargetOutput(output.logits[i:], output.features[i:], output.hidden[i:])
        sequence.commit([token], row, start.sampling.stop_token_ids)
        sequence.entropy = entropy(output.logits[i])


def _got_through(draft: Sequence[int], text: Sequence[int]) -> tuple[int, int]:
    """How many tokens of a draft are the text's, of how many. Where the text ends, nothing is
    known of the draft any more."""
    known = min(len(draft), len(text))
    wrong = (i for i in range(known) if draft[i] != text[i])
    return next(wrong, known), known
