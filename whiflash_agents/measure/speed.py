"""The speed benchmark: every method on every prompt, interleaved, in one process.

Ratios rather than absolute times: a shared machine drifts, and all methods drift with it.
transformers' own `generate` runs in the same precision on the same prompts and is always
printed. Every method ends where its answer does, so that nothing is measured on what a model
would say behind it; speeds are of the tokens really made. The order of the methods turns with
every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

import numpy as np
import torch

from whiflash_agents.measure.methods import PEERS, PROMPT_LOOKUP, STATIC, TRANSFORMERS
from whiflash_agents.measure.prompts import KINDS, Kind, Prompt
from whiflash_engine.config import ArmName, RouterConfig, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.events import Round, Stats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from whiflash_engine.engine import Engine

_WIDTHS = (1, 2, 4, 8, 16)
_RESAMPLED = 2000


@dataclass(slots=True)
class Times:
    """Of one method: seconds and tokens per prompt, and its rounds."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    rounds: list[list[Round]] = field(default_factory=list)

    def rate(self, kind: Kind | None = None) -> float:
        """Tokens per second, prompt pass included."""
        chosen = [i for i, k in enumerate(self.kinds) if kind in (None, k)]
        return sum(self.tokens[i] for i in chosen) / sum(self.seconds[i] for i in chosen)

    def decoding(self, kind: Kind | None = None) -> float:
        """Tokens per second without the prompt pass; 0 for who has no rounds."""
        stats = self.stats(kind)
        return stats.tokens / stats.phases.decoding if stats.rounds else 0.0

    def stats(self, kind: Kind | None = None) -> Stats:
        chosen = [r for r, k in zip(self.rounds, self.kinds, strict=True) if kind in (None, k)]
        every = [r for rounds in chosen for r in rounds]
        return Stats.of(every, prompt_tokens=0, seconds=0.0, time_to_first_token=0.0)


class Method(TypedDict):
    """Figures of one way to decode. Ratios are of tokens per second, prompt pass included.

    to_plain_interval: 90% of the ratios when the prompts are drawn anew, with replacement.
    decoding_to_plain: without the prompt passes.
    """

    tokens_per_second: float
    to_plain: float
    to_plain_interval: tuple[float, float]
    to_plain_by_kind: dict[Kind, float]
    # transformers has no rounds, and none of these
    decoding_to_plain: NotRequired[float]
    decoding_to_plain_by_kind: NotRequired[dict[Kind, float]]
    acceptance_length: NotRequired[float]
    acceptance_length_by_kind: NotRequired[dict[Kind, float]]
    acceptance_length_by_arm: NotRequired[dict[ArmName, float]]
    share_of_rounds: NotRequired[dict[ArmName, float]]
    switch_share_of_time: NotRequired[float]
    router_share_of_time: NotRequired[float]


class Speed(TypedDict):
    """What one run of the benchmark found, ready for JSON."""

    dtype: str
    threads: int
    prompts: int
    tokens: int
    plain_to_transformers: float
    width_8_to_1: float
    width_seconds: dict[int, float]
    best_static_per_prompt: NotRequired[float]
    """To plain: the best of the single arms, prompt by prompt. Each was timed once, so it is
    also the luckiest of them."""
    methods: dict[str, Method]


def measure(
    engine: Engine, folder: Path, prompts: Sequence[Prompt], tokens: int,
    routers: Mapping[str, RouterConfig], report: Callable[[str], None],
) -> Speed:  # fmt: skip
    """folder: the model's files, for transformers. routers: "plain" among them. One warm-up
    prompt is not counted."""
    model = _reference(folder, engine)
    times: dict[str, Times] = {name: Times() for name in (*PEERS, *routers)}
    stops, names = engine.stop_token_ids, list(times)
    for number, prompt in enumerate([prompts[0], *prompts]):
        ids = prompt.token_ids(engine)
        turned = number % len(names)
        for name in names[turned:] + names[:turned]:
            start = perf_counter()
            rounds: list[Round] = []
            if name in PEERS:
                copied = 10 if name == PROMPT_LOOKUP else None
                made = _generate(model, ids, tokens, stops, copied)
            else:
                rounds = _routed(engine, ids, tokens, routers[name])
                made = sum(len(r.tokens) for r in rounds)
            spent, record = perf_counter() - start, times[name]
            if number > 0:
                record.seconds.append(spent)
                record.tokens.append(made)
                record.kinds.append(prompt.kind)
                record.rounds.append(rounds)
        report(f"{number}/{len(prompts)} {prompt.id}")
    plain = times["plain"]
    widths = _widths(engine)
    speed = Speed(
        dtype=str(engine.target.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        prompts=len(prompts),
        tokens=tokens,
        plain_to_transformers=plain.rate() / times[TRANSFORMERS].rate(),
        width_8_to_1=widths[8] / widths[1],
        width_seconds=widths,
        methods={name: figures(record, plain) for name, record in times.items()},
    )
    if STATIC.keys() <= times.keys():
        speed["best_static_per_prompt"] = _luckiest([times[name] for name in STATIC]) / plain.rate()
    return speed


def interval(record: Times, plain: Times) -> tuple[float, float]:
    """Bootstrap over prompts, seeded."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(plain.seconds), size=(_RESAMPLED, len(plain.seconds)))
    ours, theirs = (
        np.array(one.tokens)[drawn].sum(axis=1) / np.array(one.seconds)[drawn].sum(axis=1)
        for one in (record, plain)
    )
    low, high = np.quantile(ours / theirs, (0.05, 0.95))
    return float(low), float(high)


def _luckiest(records: Sequence[Times]) -> float:
    """Tokens per second of whoever was fastest, prompt by prompt."""
    tokens = seconds = 0.0
    for i in range(len(records[0].seconds)):
        best = max(records, key=lambda record: record.tokens[i] / record.seconds[i])
        tokens, seconds = tokens + best.tokens[i], seconds + best.seconds[i]
    return tokens / seconds


def figures(record: Times, plain: Times) -> Method:
    """One method's figures."""
    kinds = [kind for kind in KINDS if kind in record.kinds]
    method: Method = {
        "tokens_per_second": record.rate(),
        "to_plain": record.rate() / plain.rate(),
        "to_plain_interval": interval(record, plain),
        "to_plain_by_kind": {kind: record.rate(kind) / plain.rate(kind) for kind in kinds},
    }
    stats = record.stats()
    if not stats.rounds:
        return method
    return {
        **method,
        "decoding_to_plain": record.decoding() / plain.decoding(),
        "decoding_to_plain_by_kind": {k: record.decoding(k) / plain.decoding(k) for k in kinds},
        "acceptance_length": stats.acceptance_length,
        "acceptance_length_by_kind": {k: record.stats(k).acceptance_length for k in kinds},
        "acceptance_length_by_arm": {arm: s.acceptance_length for arm, s in stats.arms.items()},
        "share_of_rounds": {arm: s.rounds / stats.rounds for arm, s in stats.arms.items()},
        "switch_share_of_time": stats.switch_seconds / stats.phases.total,
        "router_share_of_time": stats.phases.pick / stats.phases.total,
    }


def _routed(engine: Engine, ids: Sequence[int], tokens: int, config: RouterConfig) -> list[Round]:
    sampling = SamplingConfig(max_tokens=tokens, stop_token_ids=engine.stop_token_ids)
    sequence = engine.sequence(ids, tokens)
    router = engine.router(config)
    return list(decode(engine.target, engine.drafters, router, sequence, sampling))


def _reference(folder: Path, engine: Engine) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.target.dtype)
    return cast("PreTrainedModel", model.to(engine.target.device).eval())


def _generate(
    model: PreTrainedModel, ids: Sequence[int], tokens: int, stops: Sequence[int],
    copied: int | None,
) -> int:  # fmt: skip
    """How many tokens were made. copied: most tokens to copy from the text in a round; None
    drafts nothing."""
    prompt = torch.tensor([ids], device=model.device)
    with _quiet(), torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens,
            do_sample=False, eos_token_id=list(stops) or None, pad_token_id=0,
            prompt_lookup_num_tokens=copied,
        )  # fmt: skip
    return int(out.shape[1]) - len(ids)


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _widths(engine: Engine, context: int = 256, repeats: int = 15) -> dict[int, float]:
    """Median seconds of a target pass by width; widths interleaved."""
    target = engine.target
    context = min(context, target.config.max_positions - max(_WIDTHS))
    ids = [i % target.config.vocab_size for i in range(100, 100 + context)]
    cache = target.new_cache(context + max(_WIDTHS))
    target.forward(ids, cache, rows=1)
    spent: dict[int, list[float]] = {width: [] for width in _WIDTHS}
    for _ in range(repeats):
        for width, seconds in spent.items():
            start = perf_counter()
            target.forward(ids[:width], cache, rows=width)
            seconds.append(perf_counter() - start)
            cache.crop(context)
    return {width: median(seconds) for width, seconds in spent.items()}
