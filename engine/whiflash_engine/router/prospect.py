"""When an idle drafter is worth catching up.

That costs once and serves all the rounds that follow, nobody knows how many. A text is expected to
last as long again as it has lasted already, and a little longer; what a ready drafter gains in that
time is what having it ready has been worth on the average of late, in all texts. What the latest
rounds of a text say is no guide: a tool call begins with words that every drafter knows.
"""

from __future__ import annotations

from collections.abc import Mapping

from whiflash_engine.config import ArmName

_RATE = 0.02
"""Of the running averages: a memory of about fifty rounds, once there have been as many."""
_AT_LEAST = 16
"""Tokens."""


class Prospect:
    """Running averages by drafter: what it is worth, and what having it ready gains."""

    def __init__(self) -> None:
        self._worth: dict[ArmName, float] = {}
        self._gains: dict[ArmName, float] = {}  # seconds a round
        self._tokens = 1.0  # a round
        self._rounds = 0

    def learn(
        self, worth: Mapping[ArmName, float], gains: Mapping[ArmName, float], tokens: int
    ) -> None:
        """By a round of so many tokens, in which all arms were weighed. worth: of every drafter, in
        log units, were it ready; gains: seconds that it would have saved if so, 0 where another
        one is better."""
        if not worth:
            return
        self._rounds += 1
        rate = max(_RATE, 1.0 / self._rounds)
        self._tokens += rate * (tokens - self._tokens)
        for arm, one in worth.items():
            usual, gain = self._worth.get(arm, one), self._gains.get(arm, 0.0)
            self._worth[arm] = usual + rate * (one - usual)
            self._gains[arm] = gain + rate * (gains.get(arm, 0.0) - gain)

    def left(self, arm: ArmName, seconds: float, generated: int, room: int) -> float:
        """What of the seconds that catching up takes the rounds to come will not bring back, in a
        text of so many tokens by now that has room for so many more."""
        rounds = min(generated + _AT_LEAST, room) / self._tokens
        return max(seconds - self._gains.get(arm, 0.0) * rounds, 0.0)

    def usual(self, arm: ArmName) -> float | None:
        """What the arm is worth on the average; None before any round."""
        return self._worth.get(arm)
