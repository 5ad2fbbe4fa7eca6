"""The speed benchmark: every method on every prompt, interleaved, in one process.

Ratios rather than absolute times: a shared machine drifts, and all methods drift with it.
transformers' own `generate` runs in the same precision (float32 beside int8) on the same prompts
and is always printed. Every method ends where its answer does, so that nothing is measured on what
a model would say behind it; speeds are of the tokens really made. Each prompt has an order of the
methods of its own, drawn by its number: what runs just before may tell on a method, and should not
always be the same. What the machine does within a prompt is taken out of `levelled_to_plain`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, NotRequired, TypedDict

import torch

from whiflash_agents.measure.against import Against, against
from whiflash_agents.measure.figures import Method, Times, figures
from whiflash_agents.measure.levels import Levels
from whiflash_agents.measure.methods import AUTO, ORACLE, STATIC, TRANSFORMERS
from whiflash_agents.measure.oracle import foresighted
from whiflash_agents.measure.peers import peers
from whiflash_agents.measure.prompts import Prompt
from whiflash_agents.measure.start import PromptStart
from whiflash_agents.measure.ways import Way
from whiflash_engine.devices import device_name, wait_for
from whiflash_engine.events import Round

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine

_WIDTHS = (1, 2, 4, 8, 16)
_CONTEXT = 256  # tokens before each of these passes
_REPEATS = 15


class Speed(TypedDict):
    """What one run of the benchmark found, ready for JSON."""

    dtype: str
    device: str
    threads: int
    prompts: int
    tokens: int
    plain_to_transformers: float
    width_8_to_1: float
    width_seconds: dict[int, float]
    methods: dict[str, Method]
    auto_to: NotRequired[dict[str, Against]]
    """By method: what "auto" makes of its speed, where that is among them."""


def measure(
    engine: Engine, folder: Path, prompts: Sequence[Prompt], tokens: int,
    ways: Mapping[str, Way], report: Callable[[str], None], *, gguf: Path | None = None,
    oracle: bool = False,
) -> Speed:  # fmt: skip
    """folder, gguf: the model's files, for the peers. ways: "plain" among them. oracle: ask
    the one that knows every draft's fate as well. One warm-up prompt is not counted, and what
    routers learned from it is forgotten: it is measured again."""
    others = peers(engine, folder, gguf)
    names = [*others, *([ORACLE] if oracle else ()), *ways]
    times = {name: Times() for name in names}
    for number, prompt in enumerate([prompts[0], *prompts]):
        if number <= 1:  # afresh behind the warm-up as well
            runs = {name: way.runner(engine) for name, way in ways.items()}
        ids = prompt.token_ids(engine)
        for name in random.Random(number).sample(names, len(names)):
            rounds: list[Round] = []
            start = perf_counter()
            if name in others:
                made = others[name](ids, tokens)
                spent = perf_counter() - start
            elif name == ORACLE:
                rounds, spent = foresighted(PromptStart(engine, prompt, tokens), grammar=False)
            else:
                rounds = runs[name](ids, tokens)
                spent = perf_counter() - start
            if rounds:
                made = sum(len(r.tokens) for r in rounds)
            if number > 0:
                times[name].add(prompt.kind, spent, made, rounds)
        report(f"{number}/{len(prompts)} {prompt.id}")
    plain = times["plain"]
    # what these do otherwise is no part of their rounds, or a part of every draft
    changed = {name for name, way in ways.items() if way.eager or way.full_layer}
    alike = [record for name, record in times.items() if name not in changed]
    levels = Levels(r for record in alike for rounds in record.rounds for r in rounds)
    widths = _widths(engine)
    speed = Speed(
        dtype=engine.target.precision,
        device=device_name(engine.target.device),
        threads=torch.get_num_threads(),
        prompts=len(prompts),
        tokens=tokens,
        plain_to_transformers=plain.rate() / times[TRANSFORMERS].rate(),
        width_8_to_1=widths[8] / widths[1],
        width_seconds=widths,
        methods={
            name: figures(record, plain, None if name in changed else levels)
            for name, record in times.items()
        },
    )
    if AUTO in times:
        rivals = {name: record for name, record in times.items() if name != AUTO}
        speed["auto_to"] = against(times[AUTO], rivals, levels, [*STATIC], changed)
    return speed


def _widths(engine: Engine) -> dict[int, float]:
    """Median seconds of a target pass by width; widths interleaved."""
    target = engine.target
    context = min(_CONTEXT, target.config.max_positions - max(_WIDTHS))
    ids = [i % target.config.vocab_size for i in range(100, 100 + context)]
    cache = target.new_cache(context + max(_WIDTHS))
    target.forward(ids, cache, rows=1)
    spent: dict[int, list[float]] = {width: [] for width in _WIDTHS}
    for _ in range(_REPEATS):
        for width, seconds in spent.items():
            wait_for(target.device)
            start = perf_counter()
            target.forward(ids[:width], cache, rows=width)
            wait_for(target.device)
            seconds.append(perf_counter() - start)
            cache.crop(context)
    return {width: median(seconds) for width, seconds in spent.items()}
