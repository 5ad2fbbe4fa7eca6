"""A short calibration at load, so that the router's first decisions know what things cost."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from time import perf_counter

import torch

from whiflash_engine.cache import KVCache
from whiflash_engine.config import ArmName, SamplingConfig
from whiflash_engine.devices import wait_for
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.features import FeatureLog
from whiflash_engine.router.costs import CostModel
from whiflash_engine.sampling import Sampler
from whiflash_engine.sequence import MAX_COPY
from whiflash_engine.target.base import Target, TargetCache

_CONTEXT = 64
_FAR_CONTEXT = 1024
_REPEATS = 3
_SECONDS = 1.0
"""For the widths between those that must be measured."""


def calibrate(target: Target, drafters: Mapping[ArmName, Drafter], costs: CostModel) -> None:
    """Measure verification at the widths in use, and the shortest and longest draft of each
    drafter with the ordinary ingest before it.

    A pass grows by steps, where a matrix kernel's block of rows is full: so every width is
    measured, those between the whole drafts' as long as that does not take long. And it grows
    with what it looks back to."""
    whole = {1, MAX_COPY + 1, *(d.max_draft + 1 for d in drafters.values())}
    widest = max(whole)
    context = min(_CONTEXT, target.config.max_positions - widest)
    if context < 2:
        return  # a toy: the router learns as it goes
    tokens = [i % target.config.vocab_size for i in range(context + 1)]
    cache = target.new_cache(context + widest)
    output = target.forward(tokens[:-1], cache, rows=1)
    target.forward(tokens[:1], cache, rows=1)  # unmeasured: the first of its kind may be recorded
    cache.crop(context)
    spent: dict[int, list[float]] = {}
    between, begun = {*range(1, widest)} - whole, perf_counter()
    # in turns, so that a moment when the machine is busy does not count for one width alone
    for widths in (whole, between):
        for width in sorted(widths) * _REPEATS:
            if width in between and perf_counter() - begun > _SECONDS:
                break
            start = _now(target.device)
            target.forward(tokens[:width], cache, rows=width)
            spent.setdefault(width, []).append(_now(target.device) - start)
            cache.crop(context)
    reach = _reach(target, cache, context, widest, min(spent[widest]))
    costs.seed_reach(reach)
    least = float("inf")
    for width in sorted(spent, reverse=True):  # no pass costs more than one over more tokens
        least = min(least, median(spent[width]))
        costs.seed_verify(width, least - reach * width * context)
    log = FeatureLog(output.features.shape[1], target.dtype, target.device)
    log.append(output.features)
    sampler = Sampler(SamplingConfig())
    for name, drafter in drafters.items():
        state = drafter.new_state(context + 1)
        start = _now(target.device)
        drafter.ingest(state, log, tokens)
        costs.seed_catch_up(name, context, _now(target.device) - start)
        for drafts in {1, drafter.max_draft}:
            drafting = []
            for _ in range(_REPEATS):
                state.crop(context - 1)
                start = _now(target.device)
                drafter.ingest(state, log, tokens)
                drafter.propose(state, tokens, drafts, sampler)
                drafting.append(_now(target.device) - start)
            costs.seed(name, drafts, median(drafting))


def _reach(target: Target, cache: TargetCache, context: int, width: int, near: float) -> float:
    """Seconds that a row of a pass takes for each position that it looks back to. near: of a pass
    over `width` tokens behind `context` positions. Where positions are but memory, a long text
    need not be run for it: that nothing stands there takes as long to look at."""
    far = min(_FAR_CONTEXT, target.config.max_positions - width)
    if not isinstance(cache, KVCache) or far < 4 * context:
        return 0.0
    cache.reserve(far - context + width)
    cache.span(context, far).zero_()
    cache.advance(far - context)
    spent = []
    for _ in range(_REPEATS):
        start = _now(target.device)
        target.forward([0] * width, cache, rows=width)
        spent.append(_now(target.device) - start)
        cache.crop(far)
    cache.crop(context)
    # no more than all that a near pass takes, or that would be worth nothing
    more = min(max(min(spent) - near, 0.0), near * (far - context) / (2 * context))
    return more / (width * (far - context))


def _now(device: torch.device) -> float:
    wait_for(device)
    return perf_counter()
