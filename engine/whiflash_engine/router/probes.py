"""Arms that have not been picked for long are tried again.

An arm that is not used gives no signal, so that one bad start would condemn it for good. Trying it
after some 4, 8, 16, ... and then every 128 rounds, or fewer where it has much to catch up, costs
next to nothing and finds out when the text or the machine has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from whiflash_engine.config import ArmName
from whiflash_engine.events import Round

_FIRST: Final = 4
_LAST: Final = 128
_SHARE: Final = 0.002
"""Of the time since it was used last, which catching up for a probe may take."""


class Probes:
    """Rounds since each arm was picked last, while it was on offer, and how long to wait."""

    def __init__(self, arms: Sequence[ArmName]) -> None:
        self._idle = dict.fromkeys(arms, 0)
        # what plain decoding brings is known; what it costs may change with the machine
        self._patience = {arm: _LAST if arm == "plain" else _FIRST for arm in arms}

    def waited(self, arm: ArmName) -> bool:
        """Whether the arm has not been used for long."""
        return arm in self._idle and self._idle[arm] >= self._patience[arm]

    def affords(self, arm: ArmName, catch_up: float, seconds: float) -> bool:
        """Whether it has waited so long that catching up is a trifle. catch_up, seconds: of getting
        ready, and of a round."""
        return catch_up <= _SHARE * self._idle[arm] * seconds

    def begin(self, arm: ArmName) -> None:
        """The arm that has waited is used now; the next time it waits longer."""
        self._idle[arm] = 0
        self._patience[arm] = min(2 * self._patience[arm], _LAST)

    def learn(self, round: Round) -> None:
        """May be told some rounds later."""
        for arm, idle in self._idle.items():
            if arm == round.arm:
                self._idle[arm] = 0
            elif arm in round.scores:  # it was on offer
                self._idle[arm] = idle + 1
