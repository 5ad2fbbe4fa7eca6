"""When an idle drafter is worth catching up.

That costs once and serves all the rounds that follow, nobody knows how many: whoever has to rent
or buy skis asks the same. So a drafter catches up when the rounds that it would have been better
in have lost as much time as it takes. If what they lose were known exactly, that would spend at
most twice what foresight does (A. R. Karlin et al., Competitive Snoopy Caching, 1988).
"""

from __future__ import annotations

from whiflash_engine.config import ArmName


class Rental:
    """Seconds that rounds have lost because an arm was not ready."""

    def __init__(self) -> None:
        self._lost: dict[ArmName, float] = {}

    def left(self, arm: ArmName, seconds: float) -> float:
        """What is left to lose of the seconds that catching up takes."""
        return max(seconds - self._lost.get(arm, 0.0), 0.0)

    def lost(self, arm: ArmName, seconds: float) -> None:
        """By a round that another arm had, for this one was not ready."""
        self._lost[arm] = self._lost.get(arm, 0.0) + seconds

    def paid(self, arm: ArmName) -> None:
        """It has caught up."""
        self._lost.pop(arm, None)
