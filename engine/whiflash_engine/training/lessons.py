"""A lesson: one conversation that an adapter is taught, and its tokens."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from whiflash_engine.training import composed
from whiflash_engine.training.chat import HubTokenizer, Taught, teach
from whiflash_engine.training.gold import render_calls, tool_name
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.packing import Pack, pack
from whiflash_engine.training.rows import Json


@dataclass(frozen=True)
class Lesson:
    """One conversation of the mix, before tokenisation."""

    kind: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...]
    replies: tuple[tuple[str, tuple[Json, ...]], ...]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def distinct(rng: random.Random, tools: Sequence[Json]) -> tuple[Json, ...]:
    """In random order; of several tools of one name the first."""
    unique = list({tool_name(tool): tool for tool in reversed(tools)}.values())
    rng.shuffle(unique)
    return tuple(unique)


def loop_lesson(
    kind: str, loop: composed.Loop, tools: Sequence[Json], system: str | None, thought: str = ""
) -> Lesson:
    """Two assistant turns: the call (after a thought), and the answer to the tool's result."""
    arguments = dict(loop.call.arguments)
    turn: Json = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": loop.call.name, "arguments": arguments}}],
    }
    if thought:
        turn["reasoning_content"] = thought
        thought = f"<think>\n{thought}\n</think>\n"
    result: Json = {"role": "tool", "name": loop.call.name, "content": loop.result}
    first: tuple[Json, ...] = ({"role": "system", "content": system},) if system else ()
    return Lesson(
        kind, (*first, user(loop.question)), tuple(tools),
        ((thought + render_calls([loop.call]), (turn, result)), (loop.answer, ())),
    )  # fmt: skip


def tokenise(
    groups: Sequence[Sequence[Lesson]], tokenizer: HubTokenizer, mix: AdapterMix
) -> tuple[list[Pack], Counter[str]]:
    """The lessons that are short enough, packed by group, and how many of each kind those are."""
    packs: list[Pack] = []
    kept: Counter[str] = Counter()
    for group in groups:
        taught: list[Taught] = []
        for lesson in group:
            one = teach(tokenizer, lesson.messages, lesson.tools, lesson.replies)
            if one.learn.index(True) <= mix.max_prompt and len(one.ids) <= mix.max_tokens:
                taught.append(one)
                kept[lesson.kind] += 1
        if taught:
            packs.append(pack(taught))
    return packs, kept
