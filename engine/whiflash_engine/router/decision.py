"""What a router says before a round."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from whiflash_engine.config import ArmName


class Decision(NamedTuple):
    """drafts: how many tokens to draft at most. scores: per arm, at its best length; empty when
    there was no choice. The arm with the largest wins, except in a probe and where no drafter has
    taken the text in yet. floor: of `Drafter.propose`."""

    arm: ArmName
    drafts: int
    scores: Mapping[ArmName, float] = MappingProxyType({})
    floor: float = 0.0
