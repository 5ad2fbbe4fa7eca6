"""What is on offer in a round, and what the router may know before it picks."""

from __future__ import annotations

from collections.abc import Mapping

from whiflash_engine.config import ArmName
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.router.policies import RouteContext
from whiflash_engine.sequence import MAX_COPY, SequenceState


def offer(
    sequence: SequenceState, drafters: Mapping[ArmName, Drafter], *, copies: bool,
    sampled: bool = False,
) -> RouteContext:  # fmt: skip
    """The arms that could draft now, each with its widest pass of the target. copies: whether
    to look for something to copy. sampled: whether tokens are drawn."""
    width: dict[ArmName, int] = {"plain": 1}
    backlog: dict[ArmName, int] = {"plain": 0}
    tokens, room = sequence.tokens, sequence.room
    forced: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    matched = 0
    if sequence.constraint is not None:
        forced = sequence.constraint.forced(room)
    if forced:
        width["forced"], backlog["forced"] = len(forced) + 1, 0
    if copies:
        copied, matched = sequence.lookup.draft(tokens, min(MAX_COPY, room - len(forced)), forced)
    if copied:
        width["retrieval"], backlog["retrieval"] = len(forced) + len(copied) + 1, 0
    processed = sequence.processed
    if processed > 0:  # without any features no drafter can start
        for name, drafter in drafters.items():
            if (count := min(drafter.max_draft, room)) > 0:
                width[name] = count + 1
                backlog[name] = processed - sequence.drafts[name].watermark
    return RouteContext(
        entropy=sequence.entropy, span=sequence.spans.span, since=sequence.spans.since,
        position=len(tokens), generated=sequence.generated, room=room,
        backlog=backlog, width=width, forced=forced, copied=copied, matched=matched,
        constrained=sequence.constraint is not None, sampled=sampled, recent=sequence.recent.share,
        hidden=sequence.hidden,
    )  # fmt: skip
