"""What routers make of recorded texts, token for token, in seconds that are the same for all.

A benchmark's clock sees a machine that changes from minute to minute; a router that is better by
one percent drowns in it. Here the router picks, and hears of its rounds, as it does in the loop,
but what drafts and passes bring is read off a recording, and what they take is what was calibrated
when the model was loaded. The router hears of these seconds with some noise, as it would; they are
counted without. Decoding alone: neither the prompt's pass nor the first drafter's way through the
prompt is counted, nor what deciding takes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from whiflash_agents.measure.positions import got_through
from whiflash_agents.measure.recording import Place, Recording
from whiflash_engine.config import ArmName
from whiflash_engine.events import Round, Seconds
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.policies import RouteContext
from whiflash_engine.router.recent import Recent
from whiflash_engine.router.router import Decision, Router

_NOISE = 0.05
"""Of seconds, in log units: a standard deviation."""


class Charges:
    """Seconds of rounds. costs: as calibrated; asked, never taught."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs

    def verify(self, width: int, position: int) -> float:
        return self._costs.expected("plain", width, width, position)[0]

    def draft(self, arm: ArmName, count: int, position: int) -> float:
        """Of so many tokens, with the ordinary ingest before."""
        whole = self._costs.expected(arm, count + 1, count + 1, position)[0]
        return whole - self.verify(count + 1, position)

    def catch_up(self, arm: ArmName, backlog: int, width: int) -> float:
        return self._costs.catch_up(arm, backlog, width)


@dataclass(frozen=True, slots=True)
class Told:
    """A round, and its seconds without noise."""

    round: Round
    seconds: float


def replay(
    recording: Recording, router: Router, charges: Charges, noise: random.Random
) -> Iterator[Told]:
    """The rounds that the router makes of a text; it learns from them."""
    text, places, recent = recording.tokens, recording.places, Recent()
    marks = dict.fromkeys(places[0].drafts, 0)  # positions that each drafter has taken in
    last: ArmName | None = None
    at = 0
    copies = router.may("retrieval")
    while at < len(text):
        place = places[at]
        offered = place.context if copies else _without_copies(place.context)
        position = offered.position
        backlog = {arm: position - 1 - marks.get(arm, position - 1) for arm in offered.width}
        context = offered._replace(recent=recent.share, backlog=backlog)
        decision = router.pick(context)
        arm = decision.arm
        proposed, doubt = _proposed(place, decision)
        accepted, _ = got_through(proposed, text[at:])
        made = text[at : at + accepted + 1]
        catch_up = draft = 0.0
        if arm in marks:
            # who stays in charge misses nothing; who takes the text in first does so untold
            if last != arm and any(marks.values()):
                catch_up = charges.catch_up(arm, context.backlog[arm], context.width[arm])
            draft = charges.draft(arm, len(proposed) + (doubt is not None), position)
            marks[arm] = position - 1
        spent = Seconds(
            catch_up=catch_up, draft=draft, verify=charges.verify(len(proposed) + 1, position)
        )
        done = Round(
            arm=arm, position=position, tokens=made, proposed=proposed,
            accepted=min(accepted, len(made)), verified=len(proposed) + 1, span=context.span,
            entropy=context.entropy, backlog=context.backlog[arm], seconds=_noisy(spent, noise),
            left=decision.drafts - len(proposed), doubt=doubt,
            matched=context.matched if arm == "retrieval" else 0, scores=decision.scores,
        )  # fmt: skip
        passed, drafted = done.tried
        recent.add(arm, passed + (done.untried or 0.0), drafted + done.left)
        router.learn(done)
        last, at = arm, at + len(made)
        yield Told(done, spent.total)


def foresight(recording: Recording, charges: Charges) -> float:
    """The least seconds in which these arms could have made the text: by who knows every draft's
    fate, of which it takes as many tokens as are best, and has all drafters ready."""
    text, least = recording.tokens, [0.0] * (len(recording.tokens) + 1)
    for at in reversed(range(len(text))):
        place = recording.places[at]
        position = place.context.position
        least[at] = charges.verify(1, position) + least[at + 1]
        drafts = {arm: draft.tokens for arm, draft in place.drafts.items()}
        for arm, tokens in {**drafts, "retrieval": place.context.copied}.items():
            accepted, _ = got_through(tokens, text[at:])
            for count in range(1, min(accepted, len(text) - at - 1) + 1):
                seconds = charges.verify(count + 1, position) + least[at + count + 1]
                if arm in drafts:
                    seconds += charges.draft(arm, count, position)
                least[at] = min(least[at], seconds)
    return least[0]


def _without_copies(offered: RouteContext) -> RouteContext:
    width: dict[ArmName, int] = {a: most for a, most in offered.width.items() if a != "retrieval"}
    return offered._replace(width=width, copied=(), matched=0)


def _proposed(place: Place, decision: Decision) -> tuple[tuple[int, ...], float | None]:
    """The draft, and its doubt."""
    if decision.arm in place.drafts:
        return place.drafts[decision.arm].until(decision.drafts, decision.floor)
    return place.context.copied[: decision.drafts], None


def _noisy(spent: Seconds, noise: random.Random) -> Seconds:
    parts = (spent.catch_up, spent.draft, spent.verify)
    catch_up, draft, verify = (part * math.exp(noise.gauss(0.0, _NOISE)) for part in parts)
    return Seconds(catch_up=catch_up, draft=draft, verify=verify)
