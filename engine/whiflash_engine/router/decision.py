"""What a router says before a round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from whiflash_engine.config import ArmName

_NONE: Final[Mapping[ArmName, float]] = {}


class Decision(NamedTuple):
    """drafts: how many tokens to draft at most. scores: per arm, at its best length; empty when
    there was no choice. The arm with the largest wins, except in a probe and where no drafter has
    taken the text in yet. floor: of `Drafter.propose`."""

    arm: ArmName
    drafts: int
    scores: Mapping[ArmName, float] = _NONE
    floor: float = 0.0
