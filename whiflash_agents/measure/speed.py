"""The speed benchmark: every method on every prompt, interleaved, in one process.

Ratios rather than absolute times: a shared machine drifts, and all methods drift with it.
transformers' own `generate` runs in the same precision on the same prompts and is always
printed. All methods make the same number of tokens; stop tokens are not obeyed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, cast

import torch

from whiflash_agents.measure.prompts import KINDS, Prompt
from whiflash_engine.config import RouterConfig, RouterName, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.events import Round, Stats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from whiflash_engine.engine import Engine

ROUTED: tuple[RouterName, ...] = ("plain", "ar", "diffusion", "entropy", "auto")
_WIDTHS = (1, 2, 4, 8, 16)


@dataclass(slots=True)
class Times:
    """Of one method: seconds and tokens per prompt, and its rounds."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    rounds: list[list[Round]] = field(default_factory=list)

    def rate(self, kind: str | None = None) -> float:
        """Tokens per second, prompt pass included."""
        chosen = [i for i, k in enumerate(self.kinds) if kind in (None, k)]
        return sum(self.tokens[i] for i in chosen) / sum(self.seconds[i] for i in chosen)

    def acceptance_length(self, kind: str | None = None) -> float:
        chosen = [r for r, k in zip(self.rounds, self.kinds, strict=True) if kind in (None, k)]
        return sum(len(r.tokens) for rs in chosen for r in rs) / sum(len(rs) for rs in chosen)


def measure(
    engine: Engine, folder: Path, prompts: Sequence[Prompt], tokens: int,
    report: Callable[[str], None],
) -> dict[str, object]:  # fmt: skip
    """folder: the model's files, for transformers. One warm-up prompt is not counted."""
    model = _reference(folder, engine)
    times: dict[str, Times] = {name: Times() for name in ("transformers", *ROUTED)}
    for number, prompt in enumerate([prompts[0], *prompts]):
        ids = prompt.token_ids(engine)
        for name, record in times.items():
            start = perf_counter()
            rounds = [] if name == "transformers" else _routed(engine, ids, tokens, name)
            if name == "transformers":
                _generate(model, ids, tokens)
            spent = perf_counter() - start
            if number > 0:
                record.seconds.append(spent)
                record.tokens.append(tokens)
                record.kinds.append(prompt.kind)
                record.rounds.append(rounds)
        report(f"{number}/{len(prompts)} {prompt.id}")
    return {
        "dtype": str(engine.target.dtype), "threads": torch.get_num_threads(),
        "prompts": len(prompts), "tokens": tokens,
        "plain_to_transformers": times["plain"].rate() / times["transformers"].rate(),
        "methods": {name: _row(name, record, times["plain"]) for name, record in times.items()},
        "width_seconds": _widths(engine),
    }  # fmt: skip


def _row(name: str, record: Times, plain: Times) -> dict[str, object]:
    row: dict[str, object] = {
        "tokens_per_second": record.rate(),
        "to_plain": record.rate() / plain.rate(),
        "to_plain_by_kind": {k: record.rate(k) / plain.rate(k) for k in KINDS},
    }
    if name == "transformers":
        return row
    every = [r for rs in record.rounds for r in rs]
    stats = Stats.of(every, prompt_tokens=0, seconds=sum(record.seconds), time_to_first_token=0)
    return row | {
        "acceptance_length": record.acceptance_length(),
        "acceptance_length_by_kind": {k: record.acceptance_length(k) for k in KINDS},
        "share_of_rounds": {arm: s.rounds / stats.rounds for arm, s in stats.arms.items()},
        "switch_share_of_time": stats.switch_seconds / stats.phases.total,
        "router_share_of_time": stats.phases.pick / stats.phases.total,
    }


def _routed(engine: Engine, ids: Sequence[int], tokens: int, name: str) -> list[Round]:
    config = RouterConfig(cast(RouterName, name))
    sampling = SamplingConfig(max_tokens=tokens)
    sequence = engine.sequence(ids, tokens)
    router = engine.router(config)
    return list(decode(engine.target, engine.drafters, router, sequence, sampling))


def _reference(folder: Path, engine: Engine) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.target.dtype)
    return cast("PreTrainedModel", model.to(engine.target.device).eval())


def _generate(model: PreTrainedModel, ids: Sequence[int], tokens: int) -> None:
    prompt = torch.tensor([ids], device=model.device)
    with _quiet(), torch.inference_mode():
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, pad_token_id=0,
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
