"""Every arm from every position of a text that the target writes: what a router learns from.

Greedy, so that the text is known once it has been decoded: how far a draft would have got can be
read off it, and one pass of the target over it serves all positions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from whiflash_agents.measure.pairs import HandMade
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import ArmName, RouterConfig
from whiflash_engine.events import tokens_of
from whiflash_engine.offer import offer
from whiflash_engine.router.neural import features
from whiflash_engine.training.rounds import ARMS, DRAFTERS, Drafted


def positions(start: PromptStart, grammar: bool, rng: random.Random) -> Iterator[Drafted]:
    """Where a round may begin when any arm is as likely to draft it, and how probable that is.

    A router is asked at the beginnings of rounds only, which are harder than the positions
    between them: those follow a token that somebody got right. What the arms got through lately
    is told along one walk, drawn by `rng`.
    """
    text = tokens_of(start.run(RouterConfig("ar"), grammar))
    hand = HandMade(start, grammar)
    sequence, engine = hand.sequence, hand.engine
    chances, walk, last = [1.0] + [0.0] * len(text), 0, None
    for i in hand.reread(text):
        if i == walk and last is not None:
            sequence.recent.add(*last)
        if chances[i] > 0:
            context = offer(sequence, engine.drafters, copies=True)
            forced = len(context.forced)
            tried = dict.fromkeys(ARMS, (0, 0))
            ends: dict[ArmName, int] = {}
            for arm in ARMS if context.copied else DRAFTERS:
                if arm in DRAFTERS:
                    draft = hand.propose(arm, context.forced).tokens
                else:
                    draft = (*context.forced, *context.copied)
                accepted, known = got_through(draft, text[i:])
                tried[arm] = max(accepted - forced, 0), max(known - forced, 0)
                ends[arm] = min(i + max(accepted, forced) + 1, len(text))
            for end in ends.values():
                chances[end] += chances[i] / len(ends)
            if context.hidden is not None:
                yield Drafted(features(context), tuple(tried.values()), chances[i])
            if i == walk:
                drawn = rng.choice([*ends])
                last, walk = (drawn, *tried[drawn]), ends[drawn]


def got_through(draft: Sequence[int], text: Sequence[int]) -> tuple[int, int]:
    """How many tokens of a draft are the text's, of how many. Where the text ends, nothing is
    known of the draft any more."""
    known = min(len(draft), len(text))
    wrong = (i for i in range(known) if draft[i] != text[i])
    return next(wrong, known), known
