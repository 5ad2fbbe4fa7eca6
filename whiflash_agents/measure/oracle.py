"""What a router that knows every draft's fate would make: the yardstick beside the real ones.

Before each round every arm drafts all it can from where the text stands, and the target judges
each draft; all of that is taken back. Then the round is run with the arm and the length that bring
the most tokens per expected second, by the engine's own loop: its seconds are as real as any
router's, catching up included, and those of looking ahead are not counted.
"""

from __future__ import annotations

from time import perf_counter

from whiflash_agents.measure.pairs import HandMade
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import ArmName, RouterConfig
from whiflash_engine.decode import decode
from whiflash_engine.drafters.base import Proposal
from whiflash_engine.events import Round
from whiflash_engine.offer import offer
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.policies import RouteContext, StaticPolicy
from whiflash_engine.router.router import Decision, Router

_ROUNDS_SERVED = 8.0
"""Catching up once serves the rounds that follow as well; so much is charged to the first."""


class _Told(Router):
    """Does what it is told, and goes on measuring what rounds cost."""

    def __init__(self, costs: CostModel) -> None:
        super().__init__(StaticPolicy("plain"), costs=costs)
        self.told = Decision("plain", 0)

    def may(self, arm: ArmName) -> bool:
        return True

    def pick(self, context: RouteContext) -> Decision:
        return self.told


def foresighted(start: PromptStart, grammar: bool) -> tuple[list[Round], float]:
    """(rounds, seconds): those of the prompt's pass and of the rounds. Greedy."""
    engine, router = start.engine, _Told(start.engine.router(RouterConfig()).costs)
    hand = HandMade(start, grammar)
    loop = decode(engine.target, engine.drafters, router, hand.sequence, start.sampling)
    rounds: list[Round] = []
    began = perf_counter()
    more = hand.begin()  # the prompt's pass
    seconds = perf_counter() - began
    while more:
        router.told = _best(hand, router.costs)
        rounds.append(next(loop))
        more = hand.begin()
    loop.close()
    return rounds, seconds + sum(r.seconds.total for r in rounds)


def _best(hand: HandMade, costs: CostModel) -> Decision:
    """The arm and the length with the most tokens per expected second; nothing has happened."""
    sequence = hand.sequence
    context = offer(sequence, hand.engine.drafters, copies=True)
    marks = {arm: state.watermark for arm, state in sequence.drafts.items()}
    best, decision = 0.0, Decision("plain", 0)
    drafters = sequence.drafts.keys() & context.width.keys()
    ready = costs.catch_ups(drafters, context.backlog, context.width)
    readiest = min(ready.values(), default=0.0)
    for arm in context.width:
        made = len(hand.judge(_drafted(hand, arm, context))[0].tokens)
        late = max(ready.get(arm, 0.0) - readiest, 0.0) / _ROUNDS_SERVED
        (seconds,) = costs.expected(arm, made, made, context.position)
        if (rate := made / (seconds + late)) > best:
            best, decision = rate, Decision(arm, made - 1)  # the last one comes undrafted
    sequence.cache.crop(sequence.processed)
    for arm, state in sequence.drafts.items():
        state.crop(marks[arm])
    # who has nothing right is no better than not drafting at all
    return decision if decision.drafts else Decision("plain", 0)


def _drafted(hand: HandMade, arm: ArmName, context: RouteContext) -> Proposal:
    if arm in hand.engine.drafters:
        return hand.propose(arm, context.forced)
    return Proposal((*context.forced, *context.copied)[: context.width[arm] - 1])
