"""Which prompts a corpus is made of: rows of a mix in their shares, and composed tool loops."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.sampling import uniform
from whiflash_engine.training import composed
from whiflash_engine.training.adapter_data import LessonBuilder
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.corpus_options import CorpusOptions
from whiflash_engine.training.generate import Job
from whiflash_engine.training.gold import tool_name, words
from whiflash_engine.training.grammars import PromptGrammars
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.model_files import writing
from whiflash_engine.training.rows import KINDS, Json, PromptRow, load_by_ids

_KEPT = "prompts.jsonl.gz"
_PATIENCE = 50
"""Prompts composed for each one that is wanted: some are too long."""
KEPT_FOR_DEMONSTRATION = ("Tokyo",)
"""What demonstrations ask about is not drafted from memory."""


@dataclass(frozen=True)
class Prompt:
    id: str
    kind: str
    source: str
    ids: tuple[int, ...]
    tools: tuple[Json, ...] = ()
    schema: Json | None = None

    def jobs(self, options: CorpusOptions, split: str, grammars: PromptGrammars) -> Iterator[Job]:
        """How it is answered: half of the replies to tool and json prompts under their grammar;
        a single reply greedy or at a temperature, as the id decides, of several one greedy.
        Held-out prompts have one greedy reply, because simulated acceptance needs the target's
        own argmax."""

        def coin(purpose: str) -> bool:
            return uniform(options.seed, 0, f"{self.id}/{purpose}") < 0.5

        greedy, grammar = int(coin("temperature")), grammars.of(self.schema, self.tools)
        for number in range(options.replies if split == "train" else 1):
            key = f"{self.id}/{number}" if number else self.id
            constrained = self.kind in ("tool", "json") and coin(f"{number}/grammar")
            yield Job(
                key, self.ids, options.max_new,
                options.temperature if split == "train" and number != greedy else 0.0,
                grammar if constrained else None,
            )  # fmt: skip


def corpus_prompts(
    options: CorpusOptions, split: str, mix: str, count: int, tokenizer: HubTokenizer
) -> list[Prompt]:
    """`count` prompts in random order: every stretch is a fair sample of the whole, so that
    a part of the corpus is usable as well."""
    rows = load_by_ids(options.data, split, mix)
    rng = random.Random(options.seed)
    rng.shuffle(rows)
    share = options.shares["tool"] / sum(options.shares.values())
    extra = _composed(options, split, tokenizer, round(count * share * options.composed_tools))
    prompts = _picked(rows, extra, tokenizer, options, count)
    rng.shuffle(prompts)
    return prompts


def keep_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write a split's prompts, so that other parts and a second start need not make them again;
    and their ids alone, so that others can leave these out."""
    with writing(folder / "prompts.ids") as place:
        place.write_text("".join(f"{prompt.id}\n" for prompt in prompts), encoding="utf-8")
    with writing(folder / _KEPT) as place, gzip.open(place, "wt", 1, "utf-8") as stream:
        stream.writelines(json.dumps(vars(prompt)) + "\n" for prompt in prompts)


def kept_prompts(folder: Path) -> list[Prompt]:
    """Those of `keep_prompts`; none where there are none. CheckpointError, naming the line."""
    path = folder / _KEPT
    if not path.exists():
        return []
    prompts: list[Prompt] = []
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CheckpointError(path, f"unreadable: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            tuples = {name: tuple(value[name]) for name in ("ids", "tools")}
            prompts.append(Prompt(**{**value, **tuples}))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}:{number}", f"not a prompt: {error}") from error
    return prompts


def _picked(
    rows: Sequence[PromptRow], extra: Sequence[Prompt], tokenizer: HubTokenizer,
    options: CorpusOptions, count: int,
) -> list[Prompt]:  # fmt: skip
    """The first rows of each kind that can be made short enough; `extra` are tool prompts before
    them."""
    total = sum(options.shares.values())
    wanted = {kind: round(count * options.shares[kind] / total) for kind in KINDS}
    picked: dict[str, list[Prompt]] = {kind: [] for kind in KINDS}
    picked["tool"] = list(extra)[: wanted["tool"]]
    for row in rows:
        bucket = picked[row.kind]
        if len(bucket) >= wanted[row.kind]:
            continue
        prompt = short_enough(row, tokenizer, options.max_prompt)
        if prompt is not None:
            bucket.append(prompt)
    return [prompt for kind in KINDS for prompt in picked[kind]]


def short_enough(row: PromptRow, tokenizer: HubTokenizer, longest: int) -> Prompt | None:
    """The row's prompt. Where its tools are too many, those that have the fewest words in common
    with the request are left out, but none that was called before; None if it is still too long."""
    asked = [m.get("content") for m in row.messages if m.get("role") == "user"]
    request, spoken = words(" ".join(map(str, asked))), json.dumps(row.messages)
    called = [json.dumps(tool_name(tool)) in spoken for tool in row.tools]
    common = [len(request & words(json.dumps(tool))) for tool in row.tools]
    ranked = sorted(range(len(row.tools)), key=lambda i: (not called[i], -common[i]))
    fewest = max(sum(called), min(len(ranked), 1))
    for count in range(len(ranked), fewest - 1, -1):
        tools = tuple(row.tools[i] for i in sorted(ranked[:count]))
        ids = tokenizer.encode(tokenizer.render(row.messages, tools))
        if len(ids) <= longest:
            return Prompt(row.id, row.kind, row.source, tuple(ids), tools, row.schema)
    return None


def _composed(
    options: CorpusOptions, split: str, tokenizer: HubTokenizer, count: int
) -> list[Prompt]:
    """Tool loops from the templates, cut before the call or before the answer."""
    if not count:
        return []
    rng = random.Random(f"{options.seed}/{split}")
    builder = LessonBuilder(options.data, split, AdapterMix(), rng.randrange(2**31))
    prompts: list[Prompt] = []
    for _ in range(_PATIENCE * count):
        if len(prompts) == count:
            return prompts
        family = rng.choice(composed.FAMILIES)
        loop = family(builder.rng)
        if any(city in loop.question for city in KEPT_FOR_DEMONSTRATION):
            continue
        lesson = builder.loop(family.__name__, loop, family)
        after: Sequence[Json] = lesson.replies[0][1] if rng.random() < 0.5 else ()
        ids = tokenizer.encode(tokenizer.render([*lesson.messages, *after], lesson.tools))
        if len(ids) <= options.max_prompt:
            name = f"composed_{lesson.kind}" + ("_result" if after else "")
            prompts.append(
                Prompt(f"{name}-{len(prompts):05d}", "tool", name, tuple(ids), lesson.tools)
            )
    why = "is too short for the composed tool prompts; raise it, or make none (composed_tools=0)"
    raise ConfigError("max_prompt", options.max_prompt, why)
