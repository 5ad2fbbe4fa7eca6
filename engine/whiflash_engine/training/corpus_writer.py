"""Regenerate responses with the target, and keep its features on the way.

A drafter must imitate what the target says, not what a data set says, so every response is the
target's own. Features are taken while generating: a second pass over the text is not needed.
Jobs run in chunks whose result depends on nothing but the chunk; a chunk is written when it is
complete, so an interrupted command goes on with the next one and ends with the same corpus.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.training import composed
from whiflash_engine.training.adapter_data import AdapterMix, LessonBuilder
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.generate import Answer, BatchGenerator, Job
from whiflash_engine.training.llama import Llama, LlamaShape, load_llama
from whiflash_engine.training.model_files import fingerprint, read_json, write_json
from whiflash_engine.training.rows import KINDS, Json, PromptRow, load_by_ids

Report = Callable[[Mapping[str, float | str]], None]

KEPT_FOR_DEMONSTRATION = ("Tokyo",)
"""What demonstrations ask about is not drafted from memory."""


@dataclass(frozen=True)
class CorpusOptions:
    model: Path
    data: Path
    output: Path
    template: Path | None = None
    mix: str = "train_8k"
    dev_mix: str = "dev_mix"
    rows: int = 1600
    dev_rows: int = 80
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"tool": 1.5, "json": 1.1, "reason": 1.0, "chat": 1.0}
    )
    """Rows per kind; tool and json replies are shorter, so they get more rows."""
    composed_tools: float = 0.35
    """Share of the tool rows that are composed tool loops, half of them after the result."""
    max_prompt: int = 400
    max_new: int = 144
    temperature: float = 0.7
    """Of every second row; the others are greedy."""
    taps: tuple[int, ...] | None = None
    """Boundary indices of the features; None spreads five, see `default_taps`."""
    slots: int = 48
    chunk: int = 192
    seed: int = 0
    part: tuple[int, ...] = (0, 1)
    """(i, n): write every n-th chunk from the i-th on. Single-threaded processes, one a core,
    are the fastest way through; the one that finds all chunks written completes the corpus."""

    def __post_init__(self) -> None:
        for name in ("rows", "dev_rows", "max_prompt", "max_new", "slots", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "should be at least 1")
        if len(self.part) != 2 or not 0 <= self.part[0] < self.part[1]:
            raise ConfigError("part", self.part, "should be i,n with 0 <= i < n")
        if self.temperature < 0:
            raise ConfigError("temperature", self.temperature, "should not be negative")


def default_taps(layers: int) -> tuple[int, ...]:
    """EAGLE-3's three boundaries (2, the middle, three before the end) and what lies halfway
    between them, so that one capture serves both drafters."""
    low, middle, high = 2, layers // 2, layers - 3
    if not low < middle < high:
        raise ConfigError("taps", None, f"state them: {layers} layers are too few for the rule")
    return (low, (low + middle + 1) // 2, middle, (middle + high + 1) // 2, high)


@dataclass(frozen=True)
class Prompt:
    id: str
    kind: str
    source: str
    ids: tuple[int, ...]


def pick_prompts(
    rows: Sequence[PromptRow], extra: Sequence[Prompt], tokenizer: HubTokenizer,
    options: CorpusOptions, count: int,
) -> list[Prompt]:  # fmt: skip
    """The first short enough rows of each kind, in the mix's order; `extra` are tool prompts
    that come before them."""
    total = sum(options.shares.values())
    wanted = {kind: round(count * options.shares[kind] / total) for kind in KINDS}
    picked: dict[str, list[Prompt]] = {kind: [] for kind in KINDS}
    picked["tool"] = list(extra)[: wanted["tool"]]
    for row in rows:
        bucket = picked[row.kind]
        if len(bucket) >= wanted[row.kind]:
            continue
        ids = tokenizer.encode(tokenizer.render(row.messages, row.tools))
        if len(ids) <= options.max_prompt:
            bucket.append(Prompt(row.id, row.kind, row.source, tuple(ids)))
    return [prompt for kind in KINDS for prompt in picked[kind]]


def composed_prompts(
    options: CorpusOptions, split: str, tokenizer: HubTokenizer, count: int
) -> list[Prompt]:
    """Tool loops from the templates, cut before the call or before the answer."""
    rng = random.Random(f"{options.seed}/{split}")
    builder = LessonBuilder(options.data, split, AdapterMix(), rng.randrange(2**31))
    prompts: list[Prompt] = []
    while len(prompts) < count:
        family = rng.choice(composed.FAMILIES)
        loop = family(builder.rng)
        if any(city in loop.question for city in KEPT_FOR_DEMONSTRATION):
            continue
        lesson = builder.loop(family.__name__, loop, family)
        after: Sequence[Json] = lesson.replies[0][1] if rng.random() < 0.5 else ()
        ids = tokenizer.encode(tokenizer.render([*lesson.messages, *after], lesson.tools))
        if len(ids) <= options.max_prompt:
            name = f"composed_{lesson.kind}" + ("_result" if after else "")
            prompts.append(Prompt(f"{name}-{len(prompts):05d}", "tool", name, tuple(ids)))
    return prompts


def write_corpus(options: CorpusOptions, report: Report) -> None:
    if options.taps is None:
        layers = LlamaShape.from_folder(options.model).num_hidden_layers
        options = replace(options, taps=default_taps(layers))
    manifest: dict[str, object] = {"target": fingerprint(options.model), **_settings(options)}
    path = options.output / "manifest.json"
    plan = options.output / "plan.json"
    for old in (path, plan):
        if old.exists():
            theirs = read_json(old).values
            wrong = [
                key for key in manifest if theirs.get(key) != json.loads(json.dumps(manifest[key]))
            ]
            if wrong:
                raise CheckpointError(
                    old, f"a corpus made otherwise is here ({', '.join(wrong)}); "
                    "choose another folder or remove this one"
                )  # fmt: skip
    if path.exists():
        report({"corpus": "already complete"})
        return
    write_json(plan, manifest)
    model = load_llama(options.model)
    tokenizer = HubTokenizer(options.model, options.template)
    counts: dict[str, dict[str, int]] = {}
    for split, mix, count in (
        ("dev", options.dev_mix, options.dev_rows), ("train", options.mix, options.rows),
    ):  # fmt: skip
        rows = load_by_ids(options.data, split, mix)
        random.Random(options.seed).shuffle(rows)
        share = options.shares["tool"] / sum(options.shares.values())
        extra = composed_prompts(
            options, split, tokenizer, round(count * share * options.composed_tools)
        )
        prompts = pick_prompts(rows, extra, tokenizer, options, count)
        _write_split(options, split, prompts, model, tokenizer, report)
        written = list((options.output / split).glob("rows-*.jsonl"))
        missing = -(-len(prompts) // options.chunk) - len(written)
        if missing:
            report({"split": split, "chunks left to other parts": missing})
            return
        counts[split] = _count(options.output / split)
    write_json(path, {**manifest, "counts": counts})
    plan.unlink(missing_ok=True)


def _settings(options: CorpusOptions) -> dict[str, object]:
    values = asdict(options)
    for place in ("model", "data", "output", "template", "part"):
        del values[place]
    return values


def _write_split(
    options: CorpusOptions, split: str, prompts: Sequence[Prompt], model: Llama,
    tokenizer: HubTokenizer, report: Report,
) -> None:  # fmt: skip
    folder = options.output / split
    folder.mkdir(parents=True, exist_ok=True)
    # every chunk is a fair sample of the whole, so that a part of the corpus is usable as well
    order = list(prompts)
    random.Random(options.seed).shuffle(order)
    generator = BatchGenerator(
        model, slots=options.slots, length=options.max_prompt + options.max_new,
        stop_ids=frozenset({tokenizer.stop_id}), seed=options.seed, taps=options.taps or (),
    )  # fmt: skip
    for chunk, start in enumerate(range(0, len(order), options.chunk)):
        part = sorted(order[start : start + options.chunk], key=lambda p: len(p.ids))
        lines = folder / f"rows-{chunk:03d}.jsonl"
        if not lines.exists():
            if chunk % options.part[1] != options.part[0]:
                continue
            _write_chunk(options, lines, part, split, generator)
        report({"split": split, "rows": start + len(part), "of": len(order)})


def _count(folder: Path) -> dict[str, int]:
    """Rows and response tokens, in all and per kind, of what is written."""
    tally: Counter[str] = Counter()
    for path in sorted(folder.glob("rows-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for name in ("", f"{row['kind']}_"):
                tally[f"{name}rows"] += 1
                tally[f"{name}tokens"] += len(row["response"])
    return dict(tally)


def _write_chunk(
    options: CorpusOptions, lines: Path, part: Sequence[Prompt], split: str,
    generator: BatchGenerator,
) -> None:  # fmt: skip
    # dev rows are greedy: simulated acceptance needs the target's own argmax continuation
    heats = [0.0 if split == "dev" or i % 2 == 0 else options.temperature for i in range(len(part))]
    jobs = [
        Job(prompt.id, prompt.ids, options.max_new, heat)
        for prompt, heat in zip(part, heats, strict=True)
    ]
    answers: dict[str, Answer] = {answer.job.key: answer for answer in generator.run(jobs)}
    ordered = [(prompt, answers[prompt.id]) for prompt in part]
    features = [answer.features.numpy() for _, answer in ordered if answer.features is not None]
    target = lines.with_name(lines.name.replace("rows-", "features-")).with_suffix(".npy")
    with target.open("wb") as stream:
        np.save(stream, np.concatenate(features), allow_pickle=False)
    temporary = lines.with_name(lines.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as text:
        for prompt, answer in ordered:
            row = {
                "id": prompt.id, "kind": prompt.kind, "source": prompt.source,
                "temperature": answer.job.temperature, "prompt": prompt.ids,
                "response": answer.tokens,
            }  # fmt: skip
            text.write(json.dumps(row) + "\n")
    os.replace(temporary, lines)
