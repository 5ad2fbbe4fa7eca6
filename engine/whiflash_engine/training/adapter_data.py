"""The adapter's training mix: gold calls, whole tool loops, declines, and plain replies."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from whiflash_engine.training import composed
from whiflash_engine.training.composed_documents import document_lessons
from whiflash_engine.training.composed_words import DECLINES
from whiflash_engine.training.gold import (
    gold_calls,
    is_irrelevant,
    render_calls,
    tool_name,
    words,
)
from whiflash_engine.training.lessons import Lesson, distinct, loop_lesson, user
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.own_replies import OwnReplies
from whiflash_engine.training.rows import Json, PromptRow, load_refs, load_rows

THINK_LINES = (
    "Think before you call a tool.",
    "Think step by step, then call the right tool.",
    "Reason first, then use the tools.",
)

SYSTEM_LINES = (
    "You are a helpful assistant.",
    "You are a helpful assistant with access to tools.",
    "Use the tools when they help to answer the question.",
    "Answer the user's question. Call a function when one fits.",
)

THOUGHTS = (
    "I need the value of {expression}.",
    "The numbers give {expression}, which a tool can work out.",
    "This comes down to {expression}.",
)

STEPS = (
    "{expression} = {result}",
    "The numbers give {expression}.\n{expression} = {result}",
    "What is asked for is {expression}, that is {result}.",
)


class LessonBuilder:
    """Draws lessons from a data folder. The same seed gives the same lessons."""

    def __init__(self, data: Path, split: str, mix: AdapterMix, seed: int) -> None:
        self.data, self.split, self.mix = data, split, mix
        self.rng = random.Random(seed)
        self.spare_tools = [
            tool
            for source in ("bfcl", "seal_tools")
            for row in load_rows(data, split, source)
            for tool in row.tools[:2]
            if len(str(tool)) < 900
        ]

    def build(self, own: OwnReplies | None = None) -> list[Lesson]:
        """All lessons in random order; `own` adds those that keep the model's manner."""
        lessons = [lesson for source in self.mix.gold for lesson in self.gold(source)]
        lessons += (
            self.declines()
            + self.mismatched()
            + self.word_problems()
            + self.reasoned()
            + self.searches()
            + document_lessons(self.rng, self.mix.documented)
        )
        for count, kind, make in (
            (self.mix.sums, "sum", composed.direct_sum),
            (self.mix.documentation, "documentation", composed.documentation),
        ):
            lessons += [self.loop(kind, make(self.rng), make) for _ in range(count)]
        for _ in range(self.mix.dates):
            family = self.rng.choice(composed.DATE_FAMILIES)
            lessons.append(self.loop("date", family(self.rng), family))
        if own is not None:
            replies = own.plain(self.mix) * self.mix.plain_times
            lessons += [self._plain(row, reply) for row, reply in replies]
            lessons += [
                Lesson("document", row.messages, (), ((reply, ()),))
                for row, reply in own.documents(self.mix)
            ]
        self.rng.shuffle(lessons)
        return lessons

    def gold(self, source: str) -> list[Lesson]:
        rows, refs = load_rows(self.data, self.split, source), self._refs(source)
        found: list[Lesson] = []
        self.rng.shuffle(rows)
        many = 0
        for row in rows:
            calls = gold_calls(row, refs.get(row.id))
            if calls is None or len(found) >= self.mix.gold[source]:
                continue
            # parallel calls are a fifth at most: one call is what a turn usually is
            if len(calls) > 1:
                if len(calls) > 3 or many >= self.mix.gold[source] // 5:
                    continue
                many += 1
            found.append(Lesson(
                source, row.messages, self._fewer(row.tools, {call.name for call in calls}),
                ((render_calls(calls), ()),),
            ))  # fmt: skip
        return found

    def declines(self) -> list[Lesson]:
        rows: list[PromptRow] = []
        for source in ("bfcl", "when2call") if self.mix.irrelevant else ():
            refs = self._refs(source)
            rows += [
                row
                for row in load_rows(self.data, self.split, source)
                if is_irrelevant(row, refs.get(row.id))
            ]
        picked = self.rng.sample(rows, min(self.mix.irrelevant, len(rows)))
        return [
            Lesson("irrelevant", row.messages, self._fewer(row.tools, set()),
                   ((self.rng.choice(DECLINES), ()),))
            for row in picked
        ]  # fmt: skip

    def mismatched(self) -> list[Lesson]:
        """Requests that a tool could serve, had it been one of those on offer."""
        sources = ("bfcl", "seal_tools", "snips") if self.mix.mismatched else ()
        rows = [
            row
            for source in sources
            for refs in (self._refs(source),)
            for row in load_rows(self.data, self.split, source)
            if gold_calls(row, refs.get(row.id)) is not None
        ]
        picked = self.rng.sample(rows, min(self.mix.mismatched, len(rows)))
        lessons: list[Lesson] = []
        for row in picked:
            own = {word for tool in row.tools for word in words(tool_name(tool))}
            others = self.rng.sample(self.spare_tools, min(12, len(self.spare_tools)))
            strange = distinct(self.rng, [t for t in others if not own & words(tool_name(t))])
            lessons.append(Lesson(
                "mismatched", row.messages, tuple(strange[: self.rng.randint(1, 3)]),
                ((self.rng.choice(DECLINES), ()),),
            ))  # fmt: skip
        return lessons

    def word_problems(self) -> list[Lesson]:
        return [
            self.loop("word_problem", loop, composed.direct_sum, thoughtful=True)
            for loop in islice(self._solvable(), self.mix.word_problems)
        ]

    def reasoned(self) -> list[Lesson]:
        """Word problems without a calculator: the equation is worked out in thought."""
        found: list[Lesson] = []
        for loop in islice(self._solvable(), self.mix.reasoned):
            (expression,) = loop.call.arguments.values()
            steps = self.rng.choice(STEPS).format(expression=expression, result=loop.result)
            reply = f"<think>\n{steps}\n</think>\n{loop.answer}"
            found.append(Lesson("reasoned", (user(loop.question),), (), ((reply, ()),)))
        return found

    def _solvable(self) -> Iterator[composed.Loop]:
        """MAWPS problems whose equation is plain arithmetic."""
        if not self.mix.word_problems + self.mix.reasoned:
            return
        refs, rows = self._refs("mawps"), load_rows(self.data, self.split, "mawps")
        self.rng.shuffle(rows)
        for row in rows:
            loop = composed.word_problem(self.rng, str(row.messages[-1]["content"]), refs[row.id])
            if loop is not None:
                yield loop

    def searches(self) -> list[Lesson]:
        source = "nq_search_tools"
        found: list[Lesson] = []
        if not self.mix.searches:
            return found
        refs, rows = self._refs(source), load_rows(self.data, self.split, source)
        self.rng.shuffle(rows)
        for row in rows:
            if len(found) >= self.mix.searches:
                break
            question = str(row.messages[-1]["content"])
            loop = composed.web_search(self.rng, question, row.tools, refs.get(row.id))
            if loop is not None:
                found.append(loop_lesson("search", loop, loop.tools, self._system()))
        return found

    def loop(
        self, kind: str, loop: composed.Loop, family: composed.Family, *, thoughtful: bool = False
    ) -> Lesson:
        """Add other tools: composed ones of other families (two calculators would leave the
        choice open) or tools of other rows."""
        company: list[Json] = []
        if self.rng.random() < 0.6:
            families = [f for f in composed.FAMILIES if f is not family]
            others = self.rng.sample(families, self.rng.randint(1, 3))
            company = [make(self.rng).tools[0] for make in others]
        else:
            count = min(self.rng.randint(0, 3), len(self.spare_tools))
            company = self.rng.sample(self.spare_tools, count)
        tools = distinct(self.rng, [*loop.tools, *company])
        if thoughtful and self.rng.random() < self.mix.thoughtful:
            (expression,) = loop.call.arguments.values()
            thought = self.rng.choice(THOUGHTS).format(expression=expression)
            return loop_lesson(kind, loop, tools, self.rng.choice(THINK_LINES), thought)
        return loop_lesson(kind, loop, tools, self._system())

    def _plain(self, row: PromptRow, reply: str) -> Lesson:
        """A plain reply, in a third of the cases although tools (of other topics) are offered."""
        if self.mix.small_talk:
            count = self.rng.choice((0, 1, 2, 3))
            makers = self.rng.sample(composed.FAMILIES, count)
            tools = distinct(self.rng, [make(self.rng).tools[0] for make in makers])
            return Lesson("plain", row.messages, tools, ((reply, ()),))
        count = self.rng.choice((0, 0, 1, 2))
        tools = distinct(self.rng, self.rng.sample(self.spare_tools, count))
        return Lesson("plain", row.messages, tools, ((reply, ()),))

    def _fewer(self, tools: Sequence[Json], needed: set[str]) -> tuple[Json, ...]:
        """The needed tools and a few others, shuffled."""
        kept = [tool for tool in tools if tool_name(tool) in needed]
        others = [tool for tool in tools if tool_name(tool) not in needed]
        self.rng.shuffle(others)
        wanted = self.rng.randint(0 if kept else 1, max(1, self.mix.max_tools - len(kept)))
        size = sum(len(str(tool)) for tool in kept)
        for tool in others[:wanted]:
            size += len(str(tool))
            if size <= self.mix.max_tool_chars or not kept:
                kept.append(tool)
        return distinct(self.rng, kept)

    def _refs(self, source: str) -> dict[str, JsonValue]:
        return load_refs(self.data, self.split, source)

    def _system(self) -> str | None:
        return self.rng.choice((None, None, *SYSTEM_LINES))
