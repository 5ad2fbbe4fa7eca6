"""What an idle drafter would have made of the last round.

A drafter that is not picked says nothing of how it would do. But when it catches up, it takes in
what others have written meanwhile; on its way it can stop where the last round began, draft from
there, and be held to what that round committed. That costs a draft, and no pass of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from whiflash_engine.config import ArmName, SamplingConfig
from whiflash_engine.drafters.base import Drafter, DraftState
from whiflash_engine.events import Round, Seconds
from whiflash_engine.features import FeatureLog
from whiflash_engine.lookup import common
from whiflash_engine.sampling import Sampler

_LIKELIEST: Final = Sampler(SamplingConfig())


def in_hindsight(
    arm: ArmName, drafter: Drafter, state: DraftState, log: FeatureLog, tokens: Sequence[int],
    last: Round,
) -> Round | None:  # fmt: skip
    """`last`, with the arm's likeliest draft instead of its own: what passes of it is what the text
    has there. None where the arm could not have drafted then. log, tokens: of now, as for
    `Drafter.ingest`. The arm has taken in what came before `last` then, and nothing of it.

    Where text is sampled, a draft passes more often than its tokens are the very ones drawn; so
    what is told is a little less than it would have done.
    """
    start, forced = last.position, last.proposed[: last.forced]
    count = min(drafter.max_draft, len(tokens) - start)
    if count <= len(forced) or not state.watermark < start <= log.length:
        return None
    before = tokens[:start]
    drafter.ingest(state, log.until(start - 1), before)
    draft = drafter.propose(state, before, count, _LIKELIEST, forced).tokens
    accepted = common(draft, tokens[start:])
    return replace(
        last, arm=arm, tokens=last.tokens[: accepted + 1], proposed=draft, accepted=accepted,
        verified=0, seconds=Seconds(), forced=len(forced), matched=0, left=0, doubt=None,
    )  # fmt: skip
