"""Measure a model's tool calls on held-out rows: right tool, exact arguments, form, answers.

Greedy and unconstrained. "Exact" means: equal to the first gold value of every argument, which
is stricter than the benchmarks' own checkers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from whiflash_engine.training.adapter_data import AdapterMix, Lesson, LessonBuilder
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.generate import BatchGenerator, Job
from whiflash_engine.training.gold import parse_calls
from whiflash_engine.training.llama import load_llama


def held_out_lessons(data: Path, rows: int, seed: int) -> list[Lesson]:
    """Lessons from the dev split, `rows` a source at most; the templates use another seed."""
    mix = AdapterMix()
    fewer = replace(
        mix, gold={source: rows for source in mix.gold}, irrelevant=rows, word_problems=rows,
        sums=rows, dates=rows, searches=rows, documentation=rows, plain=0,
    )  # fmt: skip
    return LessonBuilder(data, "dev", fewer, seed).build([])


def evaluate_adapter(
    model_folder: Path, template: Path, data: Path, *, rows: int = 24, seed: int = 1,
    max_new: int = 112,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Per kind of lesson: rows, right (tool, or declining), exact (call), answered (the first
    word or number of the gold answer is in the reply after the tool's result)."""
    model = load_llama(model_folder, torch.bfloat16)
    tokenizer = HubTokenizer(model_folder, template)
    mix = AdapterMix()
    jobs: list[Job] = []
    lessons: dict[str, tuple[Lesson, int]] = {}
    for number, lesson in enumerate(held_out_lessons(data, rows, seed)):
        for turn in range(len(lesson.replies)):
            messages = list(lesson.messages)
            for _, followers in lesson.replies[:turn]:
                messages += followers
            ids = tokenizer.encode(tokenizer.render(messages, lesson.tools))
            if len(ids) <= mix.max_prompt:
                key = f"{number}/{turn}"
                jobs.append(Job(key, tuple(ids), max_new))
                lessons[key] = (lesson, turn)
    jobs.sort(key=lambda job: len(job.prompt))
    generator = BatchGenerator(
        model, slots=32, length=mix.max_prompt + max_new,
        stop_ids=frozenset({tokenizer.stop_id}), seed=seed,
    )  # fmt: skip
    tally: dict[str, Counter[str]] = {}
    for answer in generator.run(jobs):
        lesson, turn = lessons[answer.job.key]
        text = tokenizer.decode(answer.tokens).removesuffix(tokenizer.stop_text)
        count = tally.setdefault(lesson.kind, Counter())
        if turn:
            count["answers"] += 1
            count["answered"] += _core(lesson.replies[turn][0]) in text
            continue
        gold, found = parse_calls(lesson.replies[0][0]), parse_calls(text)
        count["rows"] += 1
        if gold is None:
            count["right"] += found is None and "<tool_call>" not in text
            continue
        count["right"] += found is not None and [c.name for c in found] == [c.name for c in gold]
        count["exact"] += found == gold
    return {
        kind: {
            "rows": count["rows"],
            "right": round(count["right"] / max(count["rows"], 1), 3),
            "exact": round(count["exact"] / max(count["rows"], 1), 3),
            **({"answered": round(count["answered"] / count["answers"], 3)}
               if count["answers"] else {}),
        }
        for kind, count in sorted(tally.items())
    }  # fmt: skip


def _core(answer: str) -> str:
    """What must appear in an answer: its last number, else its last word."""
    words = answer.rstrip(".").split()
    numbers = [word for word in words if any(c.isdigit() for c in word)]
    return (numbers or words)[-1].strip(",.:")
