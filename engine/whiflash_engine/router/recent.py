"""How much of what it could draft each arm got through lately, in one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from whiflash_engine.config import ArmName

UNTRIED: Final[Mapping[ArmName, float]] = {"ar": 0.3, "diffusion": 0.3, "retrieval": 0.3}
"""What is assumed before a first draft."""
_KEPT: Final = 0.8


class Recent:
    """share: per arm that drafts, the running average of accepted by drafted tokens; one that
    the drafter left out counts as drafted, and as much as it was sure of it as accepted."""

    def __init__(self) -> None:
        self.share: Mapping[ArmName, float] = UNTRIED

    def add(self, arm: ArmName, accepted: float, drafted: int) -> None:
        """Other arms, and rounds without a draft, say nothing."""
        if arm in self.share and drafted > 0:
            now = _KEPT * self.share[arm] + (1 - _KEPT) * accepted / drafted
            self.share = {**self.share, arm: now}
