"""The speed benchmark: every method on every prompt, interleaved, in one process.

Ratios rather than absolute times: a shared machine drifts, and all methods drift with it.
transformers' own `generate` runs in the same precision on the same prompts and is always
printed. All methods make the same number of tokens, so the times disobey stop tokens;
acceptance lengths are those of the answer itself, which ends with its first stop token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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

    def stats(self, kind: Kind | None = None, stops: Collection[int] = ()) -> Stats:
        """All rounds, or with `stops` only those of the answers."""
        chosen = [r for r, k in zip(self.rounds, self.kinds, strict=True) if kind in (None, k)]
        every = [r for rounds in chosen for r in answer(rounds, stops)]
        return Stats.of(every, prompt_tokens=0, seconds=0.0, time_to_first_token=0.0)


def answer(rounds: Sequence[Round], stops: Collection[int]) -> list[Round]:
    """The rounds up to the first stop token, which is the last token of the last of them."""
    kept: list[Round] = []
    for done in rounds:
        end = next((i for i, token in enumerate(done.tokens, 1) if token in stops), None)
        if end is not None:
            return [*kept, replace(done, tokens=done.tokens[:end])]
        kept.append(done)
    return kept


class Method(TypedDict):
    """Figures of one way to decode. Ratios are of speeds; AL is of the answers only.

    to_plain_interval: 90% of the ratios when the prompts are drawn anew, with replacement.
    """

    tokens_per_second: float
    to_plain: float
    to_plain_interval: tuple[float, float]
    to_plain_by_kind: dict[Kind, float]
    # transformers has no rounds, and none of these
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
    """To plain: what a router would reach that knew the best single arm of every prompt."""
    methods: dict[str, Method]


def measure(
    engine: Engine, folder: Path, prompts: Sequence[Prompt], tokens: int,
    routers: Mapping[str, RouterConfig], report: Callable[[str], None],
) -> Speed:  # fmt: skip
    """folder: the model's files, for transformers. routers: "plain" among them. One warm-up
    prompt is not counted."""
    model = _reference(folder, engine)
    times: dict[str, Times] = {name: Times() for name in (*PEERS, *routers)}
    for number, prompt in enumerate([prompts[0], *prompts]):
        ids = prompt.token_ids(engine)
        for name, record in times.items():
            start = perf_counter()
            rounds: list[Round] = []
            if name in PEERS:
                _generate(model, ids, tokens, copied=10 if name == PROMPT_LOOKUP else None)
            else:
                rounds = _routed(engine, ids, tokens, routers[name])
            spent = perf_counter() - start
            if number > 0:
                record.seconds.append(spent)
                record.tokens.append(tokens)
                record.kinds.append(prompt.kind)
                record.rounds.append(rounds)
        report(f"{number}/{len(prompts)} {prompt.id}")
    plain, stops = times["plain"], frozenset(engine.stop_token_ids)
    widths = _widths(engine)
    speed = Speed(
        dtype=str(engine.target.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        prompts=len(prompts),
        tokens=tokens,
        plain_to_transformers=plain.rate() / times[TRANSFORMERS].rate(),
        width_8_to_1=widths[8] / widths[1],
        width_seconds=widths,
        methods={name: figures(record, plain, stops) for name, record in times.items()},
    )
    if STATIC.keys() <= times.keys():
        best = [min(spent) for spent in zip(*(times[name].seconds for name in STATIC), strict=True)]
        speed["best_static_per_prompt"] = sum(plain.seconds) / sum(best)
    return speed


def interval(record: Times, plain: Times) -> tuple[float, float]:
    """Bootstrap over prompts, seeded; all methods make the same tokens of a prompt."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(plain.seconds), size=(_RESAMPLED, len(plain.seconds)))
    ours, theirs = (np.array(one.seconds)[drawn].sum(axis=1) for one in (record, plain))
    low, high = np.quantile(theirs / ours, (0.05, 0.95))
    return float(low), float(high)


def figures(record: Times, plain: Times, stops: Collection[int]) -> Method:
    """One method's figures. stops: the tokens that end an answer."""
    kinds = [kind for kind in KINDS if kind in record.kinds]
    method: Method = {
        "tokens_per_second": record.rate(),
        "to_plain": record.rate() / plain.rate(),
        "to_plain_interval": interval(record, plain),
        "to_plain_by_kind": {kind: record.rate(kind) / plain.rate(kind) for kind in kinds},
    }
    timed, answers = record.stats(), record.stats(stops=stops)
    if not timed.rounds:
        return method
    return {
        **method,
        "acceptance_length": answers.acceptance_length,
        "acceptance_length_by_kind": {k: record.stats(k, stops).acceptance_length for k in kinds},
        "acceptance_length_by_arm": {arm: s.acceptance_length for arm, s in answers.arms.items()},
        "share_of_rounds": {arm: s.rounds / answers.rounds for arm, s in answers.arms.items()},
        "switch_share_of_time": timed.switch_seconds / timed.phases.total,
        "router_share_of_time": timed.phases.pick / timed.phases.total,
    }


def _routed(engine: Engine, ids: Sequence[int], tokens: int, config: RouterConfig) -> list[Round]:
    sampling = SamplingConfig(max_tokens=tokens)
    sequence = engine.sequence(ids, tokens)
    router = engine.router(config)
    return list(decode(engine.target, engine.drafters, router, sequence, sampling))


def _reference(folder: Path, engine: Engine) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.target.dtype)
    return cast("PreTrainedModel", model.to(engine.target.device).eval())


def _generate(model: PreTrainedModel, ids: Sequence[int], tokens: int, copied: int | None) -> None:
    """copied: most tokens to copy from the text in a round; None drafts nothing."""
    prompt = torch.tensor([ids], device=model.device)
    with _quiet(), torch.inference_mode():
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, pad_token_id=0,
            prompt_lookup_num_tokens=copied,
        )  # fmt: skip


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
