"""Several requests to the same tools, some of which fit none: lessons that share their beginning.

A group costs little more than one lesson (`packing`), and sets side by side what decides: the same
tools, a request that they serve, and one that they do not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from whiflash_engine.training.composed_words import DECLINES
from whiflash_engine.training.gold import Call, gold_calls, render_calls, tool_name, words
from whiflash_engine.training.lessons import Lesson, distinct
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.rows import Json, PromptRow, load_refs, load_rows

CATALOGUE = "snips"
"""A source whose rows all choose from the same few tools."""
OWN_TOOLS = ("bfcl", "seal_tools")
_REQUESTS, _STRANGERS = 10, 2
_TOOL_CHARS = 2400

Called = tuple[PromptRow, Call]
"""A row, and the one call it asks for."""


def tool_groups(data: Path, split: str, mix: AdapterMix, seed: int) -> list[list[Lesson]]:
    """The groups of a mix; the same seed gives the same ones."""
    rng = random.Random(seed)
    groups: list[list[Lesson]] = []
    if mix.catalogues:
        groups += _catalogues(rng, _called(data, split, CATALOGUE), mix.catalogues)
    if mix.doubted:
        rows = [one for source in OWN_TOOLS for one in _called(data, split, source)]
        groups += _doubted(rng, rows, mix.doubted)
    return groups


def _called(data: Path, split: str, source: str) -> list[Called]:
    refs = load_refs(data, split, source)
    found: list[Called] = []
    for row in load_rows(data, split, source):
        calls = gold_calls(row, refs.get(row.id))
        if calls is not None and len(calls) == 1:
            found.append((row, calls[0]))
    return found


def _catalogues(rng: random.Random, rows: Sequence[Called], count: int) -> list[list[Lesson]]:
    """Every group has its own choice of the tools; where that is not all of them, a fifth of the
    requests asks for another."""
    tools = {tool_name(tool): tool for row, _ in rows for tool in row.tools}
    groups: list[list[Lesson]] = []
    waiting: list[Called] = []
    for _ in range(count if rows else 0):
        if len(waiting) <= len(rows) // 2:  # so that every row comes about as often
            waiting += rng.sample(rows, len(rows))
        size = rng.choice((2, 3, 3, 4, 5, len(tools)))
        names = rng.sample(list(tools), min(size, len(tools)))
        fitting = [one for one in waiting if one[1].name in names][: _REQUESTS - _STRANGERS]
        strange = [one for one in waiting if one[1].name not in names][:_STRANGERS]
        for one in (*fitting, *strange):
            waiting.remove(one)
        offered = distinct(rng, [tools[name] for name in names])
        groups.append(_group(rng, _system(rng.choice(rows)[0]), offered, fitting, strange))
    return groups


def _doubted(rng: random.Random, rows: Sequence[Called], count: int) -> list[list[Lesson]]:
    """A row with its own tools, and requests of other rows, whose tools have other names."""
    groups: list[list[Lesson]] = []
    for row, call in rng.sample(rows, min(count, len(rows))):
        offered = _some(rng, row.tools, call.name)
        known = {word for tool in offered for word in words(tool_name(tool))}
        others = rng.sample(rows, min(12, len(rows)))
        strange = [one for one in others if not known & words(one[1].name)][:_STRANGERS]
        groups.append(_group(rng, _system(row), offered, [(row, call)], strange))
    return groups


def _some(rng: random.Random, tools: Sequence[Json], needed: str) -> tuple[Json, ...]:
    """The needed tool and up to four others, not too long together."""
    kept = [tool for tool in tools if tool_name(tool) == needed]
    others = [tool for tool in tools if tool_name(tool) != needed]
    for tool in rng.sample(others, rng.randint(0, min(4, len(others)))):
        if sum(len(str(one)) for one in (*kept, tool)) <= _TOOL_CHARS:
            kept.append(tool)
    return distinct(rng, kept)


def _system(row: PromptRow) -> tuple[Json, ...]:
    return tuple(message for message in row.messages if message["role"] == "system")


def _group(
    rng: random.Random, system: tuple[Json, ...], tools: tuple[Json, ...],
    fitting: Sequence[Called], strange: Sequence[Called],
) -> list[Lesson]:  # fmt: skip
    """Every row's last request to these tools, and its reply: the call, or a refusal."""
    replies = [(row, row.source, render_calls([call])) for row, call in fitting]
    replies += [(row, "strangers", rng.choice(DECLINES)) for row, _ in strange]
    return [
        Lesson(kind, (*system, row.messages[-1]), tools, ((reply, ()),))
        for row, kind, reply in replies
    ]
