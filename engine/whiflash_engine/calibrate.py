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
_TIMES = 8
"""How many times as long the longer backlog is."""
_SOON = 0.02
"""Seconds."""
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
    look = _look(target, cache, context, widest)
    costs.seed_look(*look)
    least = float("inf")
    for width in sorted(spent, reverse=True):  # no pass costs more than one over more tokens
        least = min(least, median(spent[width]))
        costs.seed_verify(width, least - context * (look[0] + look[1] * width))
    log = FeatureLog(output.features.shape[1], target.dtype, target.device)
    log.append(output.features)
    sampler = Sampler(SamplingConfig())
    for name, drafter in drafters.items():
        state = drafter.new_state(context + 1)
        drafter.ingest(state, log, tokens)
        for drafts in {1, drafter.max_draft}:
            drafting = []
            for _ in range(_REPEATS):
                state.crop(context - 1)
                start = _now(target.device)
                drafter.ingest(state, log, tokens)
                drafter.propose(state, tokens, drafts, sampler)
                drafting.append(_now(target.device) - start)
            costs.seed(name, drafts, median(drafting))
        _seed_catch_ups(costs, name, drafter, log, tokens)


def _look(target: Target, cache: TargetCache, context: int, widest: int) -> tuple[float, float]:
    """Seconds that a pass takes for each position that it looks back to, and each of its rows.

    Where positions are but memory, a long text need not be run for it: that nothing stands there
    takes as long to look at."""
    far = min(_FAR_CONTEXT, target.config.max_positions - widest)
    if not isinstance(cache, KVCache) or far < 4 * context:
        return 0.0, 0.0
    cache.reserve(far - context + widest)
    cache.span(context, far).zero_()
    more: dict[int, list[float]] = {1: [], widest: []}
    least = float("inf")
    for _ in range(_REPEATS):  # near and far in turns
        for width, found in more.items():
            spent = []
            for place in (context, far):
                cache.advance(place - cache.length)
                start = _now(target.device)
                target.forward([0] * width, cache, rows=width)
                spent.append(_now(target.device) - start)
                cache.crop(context)
            found.append(spent[1] - spent[0])
            least = min(least, spent[0])
    one, all_rows = (max(median(found), 0.0) / (far - context) for found in more.values())
    # near the beginning it is not what a pass is made of, whatever a busy moment says
    most = 0.5 * least / (context * widest)
    a_row = min(max((all_rows - one) / (widest - 1), 0.0), most)
    return min(max(one - a_row, 0.0), most), a_row


def _seed_catch_ups(
    costs: CostModel, name: ArmName, drafter: Drafter, log: FeatureLog, tokens: list[int]
) -> None:
    """At two backlogs, the second of the features that there are over and over, and what follows
    from these for a short one and a long one. A drafter that takes long for the first is not asked
    for the second: its time is all arithmetic, and grows with the backlog."""
    near, features = log.length, log.rows(0, log.length)
    long = FeatureLog(log.width, features.dtype, features.device)
    for _ in range(_TIMES):
        long.append(features)
    every = [tokens[i % near] for i in range(long.length + 1)]
    state = drafter.new_state(long.length + 1)

    def timed(length: int) -> float:
        spent = []
        for _ in range(1 + _REPEATS):
            state.crop(0)
            start = _now(features.device)
            drafter.ingest(state, long.until(length), every[: length + 1])
            spent.append(_now(features.device) - start)
        return median(spent[1:])  # the first may be slower than any other

    short = timed(near)
    much = timed(long.length) if short < _SOON else _TIMES * short
    slope = max(much - short, 0.0) / (long.length - near)
    longer = _TIMES * long.length
    costs.seed_catch_up(name, 1, min(slope, short))
    costs.seed_catch_up(name, near, short)
    costs.seed_catch_up(name, long.length, much)
    costs.seed_catch_up(name, longer, much + (longer - long.length) * slope)


def _now(device: torch.device) -> float:
    wait_for(device)
    return perf_counter()
