"""Regenerate responses with the target, and keep its features on the way.

A drafter must imitate what the target says, not what a data set says, so every response is the
target's own. Features are taken while generating, if at all: a second pass is not needed then.
Jobs run in chunks whose result depends on nothing but the chunk; a chunk is written when it is
complete, so an interrupted command goes on with the next one and ends with the same corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.corpus_options import CorpusOptions, default_taps, require_taps
from whiflash_engine.training.corpus_prompts import (
    Prompt,
    corpus_prompts,
    keep_prompts,
    kept_prompts,
)
from whiflash_engine.training.generate import Answer, BatchGenerator
from whiflash_engine.training.grammars import PromptGrammars, ToolGrammar
from whiflash_engine.training.llama import Llama, load_llama, trainable_config
from whiflash_engine.training.loop import Report
from whiflash_engine.training.model_files import fingerprint, write_json, writing


def write_corpus(
    options: CorpusOptions, report: Report, tool_grammar: ToolGrammar | None = None
) -> None:
    """tool_grammar: how calls are constrained; without it only schemas are."""
    layers = trainable_config(options.model).num_layers
    taps = default_taps(layers) if options.taps is None else options.taps
    require_taps(taps, layers)
    options = replace(options, taps=taps)
    path = options.output / "manifest.json"
    plan = options.output / "plan.json"
    manifest = {"target": fingerprint(options.model), **options.settings()}
    _refuse_another(manifest, path, plan)
    if path.exists():
        report({"corpus": "already complete"})
        return
    tokenizer = HubTokenizer(options.model, options.template)
    splits = _prompts(options, tokenizer, begun=plan.exists())
    write_json(plan, manifest)
    for split, prompts in splits.items():
        keep_prompts(options.output / split, prompts)
    model = load_llama(options.model)
    grammars = PromptGrammars(tokenizer, model.config.vocab_size, tool_grammar)
    for split, prompts in splits.items():
        _write_split(options, split, prompts, model, tokenizer, grammars, report)
    # Only now: other parts may have finished what was missing before.
    left = sum(_missing(options, split, len(prompts)) for split, prompts in splits.items())
    if left:
        report({"chunks left to other parts": left})
        return
    counts = {split: _count(options.output / split) for split in splits}
    ids = {split: [prompt.id for prompt in prompts] for split, prompts in splits.items()}
    write_json(path, {**manifest, "counts": counts, "prompts": ids})
    plan.unlink(missing_ok=True)


def _prompts(
    options: CorpusOptions, tokenizer: HubTokenizer, *, begun: bool
) -> dict[str, list[Prompt]]:
    """Those of both splits; kept ones where a plan vouches for them (begun). ConfigError where a
    split has none: nothing could be learned, or judged."""
    splits: dict[str, list[Prompt]] = {}
    for split, mix, name in (("dev", options.dev_mix, "dev_rows"), ("train", options.mix, "rows")):
        count = getattr(options, name)
        kept = kept_prompts(options.output / split) if begun else []
        splits[split] = kept or corpus_prompts(options, split, mix, count, tokenizer)
        if not splits[split]:
            why = f"too few for the shares, or no prompt of {mix} has max_prompt tokens at most"
            raise ConfigError(name, count, f"{why} ({options.max_prompt})")
    return splits


def _missing(options: CorpusOptions, split: str, rows: int) -> int:
    """Chunks that nobody has written yet."""
    written = len(list((options.output / split).glob("rows-*.jsonl")))
    return len(range(0, rows, options.chunk_prompts)) - written


def _refuse_another(manifest: Mapping[str, object], *paths: Path) -> None:
    """A folder that holds a corpus, or the beginning of one, made with other settings."""
    for path in paths:
        if path.exists():
            theirs = {"features": True, **Fields.read(path).values}  # once all had them
            mine = json.loads(json.dumps(manifest))
            if wrong := [key for key in mine if theirs.get(key) != mine[key]]:
                raise CheckpointError(
                    path, f"a corpus made otherwise is here ({', '.join(wrong)}); "
                    "choose another folder or remove this one whole"
                )  # fmt: skip


def _write_split(
    options: CorpusOptions, split: str, prompts: Sequence[Prompt], model: Llama,
    tokenizer: HubTokenizer, grammars: PromptGrammars, report: Report,
) -> None:  # fmt: skip
    """This part's chunks of a split."""
    folder = options.output / split
    generator = BatchGenerator(
        model, slots=options.slots, length=options.max_prompt + options.max_new,
        stop_ids=frozenset({tokenizer.stop_id}), seed=options.seed,
        taps=(options.taps or ()) if options.features else (),
    )  # fmt: skip
    starts = range(0, len(prompts), options.chunk_prompts)
    for chunk, start in enumerate(starts):
        part = sorted(prompts[start : start + options.chunk_prompts], key=lambda p: len(p.ids))
        lines = folder / f"rows-{chunk:03d}.jsonl"
        if not lines.exists():
            if chunk % options.part[1] != options.part[0]:
                continue
            asked = [(p, job) for p in part for job in p.jobs(options, split, grammars)]
            found = {answer.job.key: answer for answer in generator.run([j for _, j in asked])}
            _write_chunk(lines, [(prompt, found[job.key]) for prompt, job in asked])
        report({"split": split, "rows": start + len(part), "of": len(prompts)})


def _count(folder: Path) -> dict[str, int]:
    """Rows and response tokens, in all and per kind, of what is written."""
    tally: Counter[str] = Counter()
    for path in sorted(folder.glob("rows-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for name in ("", f"{row['kind']}_", *(["grammar_"] if row["grammar"] else [])):
                tally[f"{name}rows"] += 1
                tally[f"{name}tokens"] += len(row["response"])
    return dict(tally)


def _write_chunk(lines: Path, answers: Sequence[tuple[Prompt, Answer]]) -> None:
    """Features first: a rows file vouches for the features beside it."""
    features = [a.features.cpu().numpy() for _, a in answers if a.features is not None]
    target = lines.with_name(lines.name.replace("rows-", "features-")).with_suffix(".npy")
    if features:
        with writing(target) as place, place.open("wb") as stream:
            np.save(stream, np.concatenate(features), allow_pickle=False)
    with writing(lines) as place, place.open("w", encoding="utf-8") as text:
        for prompt, answer in answers:
            row = {
                "id": answer.job.key, "kind": prompt.kind, "source": prompt.source,
                "temperature": answer.job.temperature, "grammar": answer.job.grammar is not None,
                "prompt": prompt.ids, "response": answer.tokens,
                "forced": answer.forced, "overruled": answer.overruled,
            }  # fmt: skip
            text.write(json.dumps(row) + "\n")
