"""A greedy text, and what every arm would have drafted from every place in it.

Drafts depend on the text before them alone, and the text on nobody's drafts: so much recorded once
tells what any router would have made of it; see `replay`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from whiflash_agents.measure.pairs import HandMade
from whiflash_agents.measure.prompts import Kind
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import ArmName, RouterConfig
from whiflash_engine.decode import decode
from whiflash_engine.drafters.ending import Ending, chances
from whiflash_engine.events import tokens_of
from whiflash_engine.offer import offer
from whiflash_engine.router.policies import RouteContext


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a drafter would draft. chances: that each token passes once those before it have,
    in the drafter's opinion. looks: one that drafts all at once knows what comes behind where its
    draft ends; one that drafts token by token has not looked, where nothing could be worth it."""

    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    looks: bool

    def until(self, count: int, floor: float) -> tuple[tuple[int, ...], float | None]:
        """The draft of at most so many tokens that ends by itself at this floor, and its doubt;
        as `Drafter.propose` has it."""
        ending, made = Ending(floor), 0
        for chance in self.chances[:count]:
            if ending.before(chance):
                break
            made += 1
            if ending.over and not self.looks:
                break
        return self.tokens[:made], ending.doubt


@dataclass(frozen=True, slots=True)
class Place:
    """Where a round may begin. context: what is on offer, but for backlogs and for what arms got
    through lately, which depend on the rounds before."""

    context: RouteContext
    drafts: Mapping[ArmName, Draft]


@dataclass(frozen=True, slots=True)
class Recording:
    """tokens: the text; places: before each of them."""

    kind: Kind
    tokens: tuple[int, ...]
    places: tuple[Place, ...]


class _Noting:
    """Chooses the likeliest tokens, and notes how sure the drafter is of each."""

    greedy = False  # or a chain of them would be drafted without asking

    def __init__(self) -> None:
        self.asked, self.chances = 0, list[float]()

    def choose(self, logits: Tensor, position: int, start: int) -> tuple[list[int], None]:
        self.asked += 1
        self.chances += chances(logits, None, 1.0)
        found: list[int] = logits.argmax(-1).tolist()
        return found, None


def record(start: PromptStart) -> Recording:
    """The text is decoded once and then read again with one pass of the target."""
    engine, sequence = start.engine, start.rewound(grammar=False)
    # any will do; what this one learns is nobody's business
    router = engine.fresh_router(RouterConfig(learned=False))
    rounds = decode(engine.target, engine.drafters, router, sequence, start.sampling)
    text = tokens_of(rounds)
    return Recording(start.prompt.kind, tuple(text), tuple(_places(start, text)))


def _places(start: PromptStart, text: Sequence[int]) -> Iterator[Place]:
    hand = HandMade(start, grammar=False)
    sequence, engine = hand.sequence, hand.engine
    for _ in hand.reread(text):
        context = offer(sequence, engine.drafters, copies=True)
        drafts = {arm: _drafted(hand, arm, context) for arm in engine.drafters}
        hidden = None if context.hidden is None else context.hidden.clone()
        yield Place(context._replace(hidden=hidden), drafts)


def _drafted(hand: HandMade, arm: ArmName, context: RouteContext) -> Draft:
    sequence, noting = hand.sequence, _Noting()
    if arm not in context.width:
        return Draft((), (), looks=False)
    drafter, state = hand.engine.drafters[arm], sequence.drafts[arm]
    drafter.ingest(state, sequence.log, sequence.tokens)
    proposal = drafter.propose(state, sequence.tokens, context.width[arm] - 1, noting)
    at_once = noting.asked < len(proposal.tokens)
    return Draft(proposal.tokens, tuple(noting.chances), looks=at_once)
