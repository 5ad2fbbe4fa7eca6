"""A decision by a wide margin stands for some rounds.

Asking anew every round would cost half a percent of the time, most of it to bring what the question
needs back into the processor's caches, through which the target's weights have passed; and where
one drafter was far ahead, it still is a round later. So it is asked again after as many rounds as
the margin is wide, the fewer the less time counts (`balance`), and at once where the text or what
is on offer has changed: there is something to copy, the grammar forces tokens, another span begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from whiflash_engine.config import ArmName, Span
from whiflash_engine.router.decision import Decision
from whiflash_engine.router.policies import RouteContext

_UNIT: Final = 0.02
"""Log units between the best and the next best for every round, where balance is 1."""
_MOST: Final = 10
_NEAR: Final = 16
"""Positions within which a text goes on, and a drafter is as good as ready."""
_PASSING: Final = frozenset[ArmName](("retrieval", "forced"))
"""Arms that are on offer now and may be gone in the next round."""


class Standing:
    """The arm that was best of those that stay on offer, of the text that was asked about last.
    Where texts take turns, one that stands at about the same place may go by another's.

    balance: of the router. floor: of the decision that stands.
    """

    def __init__(self, balance: float = 1.0) -> None:
        self.floor = 0.0
        self._balance = balance
        self._arm: ArmName = "plain"
        self._scores: Mapping[ArmName, float] = {}
        self._span: Span = "text"
        self._position = 0
        self._left = 0

    def keep(self, scores: Mapping[ArmName, float], context: RouteContext) -> ArmName | None:
        """By a round with these scores, of all arms on offer. The arm, if one will stand."""
        self._left = 0
        staying = {arm: score for arm, score in scores.items() if arm not in _PASSING}
        if len(staying) < 2:
            return None
        best = max(staying, key=staying.__getitem__)
        if best == "plain" or context.backlog[best] > _NEAR:
            return None
        ahead = staying[best] - max(score for arm, score in staying.items() if arm != best)
        self._left = int(min(_MOST, self._balance * ahead / _UNIT))
        self._arm, self._scores = best, staying
        self._span, self._position = context.span, context.position
        return best if self._left else None

    def recall(self, context: RouteContext) -> Decision | None:
        """Of a round that does not have to ask; the scores are those of when it was asked."""
        went_on, width, arm = context.position - self._position, context.width, self._arm
        if self._left <= 0 or not 0 < went_on <= _NEAR or context.span != self._span:
            return None
        if not _PASSING.isdisjoint(width) or context.backlog.get(arm, _NEAR + 1) > _NEAR:
            return None
        self._left, self._position = self._left - 1, context.position
        return Decision(arm, width[arm] - 1, self._scores, self.floor)
