"""How well a model calls tools, declines and reasons: greedy, on rows with gold answers.

Tool prompts are decoded as `tool_choice="auto"` is in use: under the grammar that lets the model
talk or call, and keeps a call well formed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.hermes import HERMES
from whiflash_engine.config import SamplingConfig
from whiflash_engine.errors import ConstraintError
from whiflash_engine.training.adapter_data import LessonBuilder
from whiflash_engine.training.composed import evaluate
from whiflash_engine.training.gold import (
    Call,
    gold_number,
    is_irrelevant,
    last_number,
    parse_calls,
    tool_name,
)
from whiflash_engine.training.gold_match import Accepted, accepted_call
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import Json, PromptRow, load_refs, load_rows

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine

CALLS = ("bfcl", "seal_tools", "snips")
DECLINES = ("bfcl", "when2call")
SUMS = "gsm8k_tools"
PROBLEMS = ("gsm8k_train", "svamp", "mawps")
TALK = ("nq_open", "dolly")
_SPLIT = "dev"


@dataclass(slots=True)
class Score:
    """Of one group of rows. right: the right tool was called, or none where none fits; without
    tools, the answer does not speak of any. exact: all arguments as well. solved: the number, or
    the word that matters, is the gold answer's."""

    rows: int = 0
    right: int = 0
    exact: int = 0
    solved: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One row and what would be right."""

    group: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...]
    gold: Accepted | None = None
    number: float | None = None
    word: str | None = None
    talk: bool = False


def cases(data: Path) -> Iterator[Case]:
    """Single-call rows, rows that no tool fits, sums with a calculator, word problems, questions
    that are to be answered rather than refused for want of a tool, and loops composed from
    templates: the call, and the answer after the tool's result."""
    for source in CALLS:
        for row, ref in _with_refs(data, source):
            if (gold := accepted_call(row, ref)) is not None:
                yield Case(source, row.messages, row.tools, gold=gold)
    for source in DECLINES:
        for row, ref in _with_refs(data, source):
            if is_irrelevant(row, ref):
                yield Case("no tool fits", row.messages, row.tools)
    for row, ref in _with_refs(data, SUMS):
        yield Case(SUMS, row.messages, row.tools, number=gold_number(ref))
    for source in PROBLEMS:
        for row, ref in _with_refs(data, source):
            yield Case(f"{source} without tools", row.messages, (), number=gold_number(ref))
    for source in TALK:
        for row in load_rows(data, _SPLIT, source):
            yield Case(f"{source} without tools", row.messages, (), talk=True)
    loops = AdapterMix(
        gold={}, irrelevant=0, word_problems=10, sums=10, dates=20, searches=10, documentation=10
    )
    for lesson in LessonBuilder(data, _SPLIT, loops, seed=1).build():
        (call_text, after), (answer, _) = lesson.replies
        (call,) = parse_calls(call_text) or []
        gold = Accepted(call.name, {k: [v] for k, v in call.arguments.items()}, nested=False)
        yield Case("composed calls", lesson.messages, lesson.tools, gold=gold)
        yield Case(
            "answers to results", (*lesson.messages, *after), lesson.tools, word=_core(answer)
        )


def _with_refs(data: Path, source: str) -> Iterator[tuple[PromptRow, JsonValue]]:
    refs = load_refs(data, _SPLIT, source)
    return ((row, refs.get(row.id)) for row in load_rows(data, _SPLIT, source))


def measure_calls(
    engine: Engine, data: Path, *, per_group: int, tokens: int, max_prompt: int, template: str,
    report: Callable[[str], None],
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Scores per group. template: the chat template, the same for every model compared.

    Rows whose prompt is longer than `max_prompt` tokens are passed over.
    """
    scores: dict[str, Score] = {}
    for case in cases(data):
        score = scores.setdefault(case.group, Score())
        if score.rows >= per_group:
            continue
        ids = cast(
            list[int],
            engine.tokenizer.apply_chat_template(
                list(case.messages), tools=list(case.tools) or None,
                chat_template=template, add_generation_prompt=True, return_dict=False,
            ),
        )  # fmt: skip
        if len(ids) > max_prompt:
            continue
        try:
            constraint = None
            if case.tools:
                constraint = engine.grammar(HERMES.grammar(Ask(case.tools)), HERMES.signposts)
        except ConstraintError:  # some rows' tools have arguments that no value could satisfy
            continue
        done = engine.complete(
            ids, sampling=SamplingConfig(max_tokens=tokens), constraint=constraint
        )
        judge(score, case, engine.tokenizer.decode(done.tokens, skip_special_tokens=True))
        if score.rows % 10 == 0:
            report(f"{case.group}: {asdict(score)}")
    return {group: asdict(score) for group, score in scores.items()}


def judge(score: Score, case: Case, text: str) -> None:
    calls = parse_calls(text) or []
    score.rows += 1
    if case.gold is not None:
        score.right += [call.name for call in calls] == [case.gold.name]
        score.exact += len(calls) == 1 and case.gold.fits(calls[0])
    elif case.group == SUMS:
        score.right += bool(calls) and calls[0].name in map(tool_name, case.tools)
        score.solved += bool(calls) and _value(calls[0]) == case.number
    elif case.word is not None:
        score.solved += not calls and case.word in text
    elif case.tools:
        score.right += not calls
    elif case.talk:
        score.right += not _of_tools(text) or _of_tools(str(case.messages))
    else:
        score.solved += last_number(text) == case.number


def _of_tools(text: str) -> bool:
    return re.search(r"\b(tool|function)s?\b", text, re.IGNORECASE) is not None


def _core(answer: str) -> str:
    """What must appear in an answer: its last number, else its last word."""
    words = answer.rstrip(".").split()
    numbers = [word for word in words if any(c.isdigit() for c in word)]
    return (numbers or words)[-1].strip(",.:")


def _value(call: Call) -> float | None:
    """What a call of a calculator amounts to."""
    (first, *_) = [*call.arguments.values(), None]
    return evaluate(first) if isinstance(first, str) else None
