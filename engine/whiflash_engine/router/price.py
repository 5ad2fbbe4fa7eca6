"""What a draft token costs, in tokens.

    price_a = balance * pace * c_a

pace: tokens a second that rounds have made of late; c_a: seconds that one draft token more of arm
a takes, to draft and to verify. In the time of a token that is drafted in vain other rounds would
have made so many. A token pays while the chance that all of the draft passes is above that.
"""

from __future__ import annotations

from typing import Final

from whiflash_engine.config import ArmName
from whiflash_engine.events import Round
from whiflash_engine.router.costs import CostModel

# Weight of the past at each new round: a memory of about fifty.
_DECAY: Final = 0.98


class Price:
    def __init__(self, costs: CostModel, balance: float) -> None:
        self._costs, self._balance = costs, balance
        self._tokens, self._seconds = 0.0, 0.0

    def learn(self, round: Round) -> None:
        self._tokens = _DECAY * self._tokens + len(round.tokens)
        self._seconds = _DECAY * self._seconds + round.seconds.decoding

    def of(self, arm: ArmName, width: int, context: int = 0) -> float:
        """0 to 1, on the average of a draft of width - 1 tokens; 0 before any round."""
        if width <= 2 or not self._seconds or not self._balance:
            return 0.0
        first, *_, last = self._costs.expected(arm, 2, width, context)
        pace = self._tokens / self._seconds
        return min(max(self._balance * pace * (last - first) / (width - 2), 0.0), 1.0)
