"""What an idle drafter would have made of the last round.

A drafter that is not picked says nothing of how it would do. But when it catches up, it takes in
what others have written meanwhile; on its way it can stop where the last round began, draft from
there, and be held to what that round committed. That costs a draft, and no pass of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from whiflash_engine.config import ArmName, SamplingConfig
from whiflash_engine.drafters.base import Drafter, DraftState
from whiflash_engine.events import Round, Seconds
from whiflash_engine.lookup import common
from whiflash_engine.sampling import Sampler

_LIKELIEST: Final = Sampler(SamplingConfig())


class Known(NamedTuple):
    """The last round, and how many of its tokens a grammar had forced before it was picked."""

    round: Round
    forced: int


def could_look_back(drafter: Drafter, state: DraftState, known: Known) -> bool:
    """Whether the drafter could have drafted then: it has not gone further yet, and there was
    more to draft than what a grammar forced."""
    count = min(drafter.max_draft, len(known.round.tokens))
    return known.forced < count and state.watermark < known.round.position


def in_hindsight(
    arm: ArmName, drafter: Drafter, state: DraftState, tokens: Sequence[int], known: Known
) -> Round:
    """`known.round` with the arm's likeliest draft instead of its own: what passes of it is what
    the text has there. tokens: all committed ones. The arm has taken in what came before that
    round, and nothing of it.

    Where text is sampled, a draft passes more often than its tokens are the very ones drawn; so
    what is told is a little less than it would have done.
    """
    last, start = known.round, known.round.position
    forced = tuple(last.tokens[: known.forced])
    count = min(drafter.max_draft, len(last.tokens))
    draft = drafter.propose(state, tokens[:start], count, _LIKELIEST, forced).tokens
    accepted = common(draft, last.tokens)
    return replace(
        last, arm=arm, tokens=last.tokens[: accepted + 1], proposed=draft, accepted=accepted,
        verified=0, seconds=Seconds(), forced=known.forced, matched=0, left=0, doubt=None,
    )  # fmt: skip
