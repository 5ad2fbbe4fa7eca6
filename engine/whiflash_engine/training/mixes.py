"""How many conversations of each kind an adapter is taught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class AdapterMix:
    """Conversations per kind; as many as the data has, where that is less."""

    gold: Mapping[str, int] = field(
        default_factory=lambda: {
            "bfcl": 330, "seal_tools": 110, "acebench": 80, "toolalpaca": 30, "snips": 25,
            "api_bank": 30, "sgd": 30, "tooltalk": 15,
        }
    )  # fmt: skip
    """Gold calls by source."""
    irrelevant: int = 50
    """Rows whose tools cannot help, with a short refusal."""
    mismatched: int = 0
    """Questions of gold rows with the tools of other rows, and a short refusal."""
    word_problems: int = 110
    sums: int = 60
    dates: int = 130
    searches: int = 50
    documentation: int = 50
    thoughtful: float = 0.0
    """Share of the word problems whose system prompt asks to think before the call."""
    plain: int = 90
    """Chat prompts with the untouched model's own reply; only short replies are taught."""
    plain_times: int = 1
    """How often each of these is taught, with other tools on offer every time."""
    small_talk: bool = False
    """Plain replies to small talk too, with the composed tools on offer (not to be called)."""
    reasoned: int = 0
    """Word problems without tools, their equation worked out between `<think>` tags."""
    documented: int = 0
    """Requests with tools and a schema for the answer: half are answered at once, half after a
    call, by a document."""
    documents: int = 0
    """JSON replies of the untouched model, decoded under the prompt's schema."""
    catalogues: int = 0
    """Groups of ten requests to a choice of Snips' seven tools, two of which fit none of them, or
    of eight requests to all seven."""
    doubted: int = 0
    """Gold rows, each with requests of two others to the same tools, which are refused."""
    max_prompt: int = 420
    max_tokens: int = 560
    max_tools: int = 4
    max_tool_chars: int = 1200


BROAD = AdapterMix()
"""The first round: many tools, once."""

LOOPS = AdapterMix(
    gold={"bfcl": 70, "seal_tools": 25, "acebench": 15}, irrelevant=10, word_problems=50, sums=45,
    dates=210, searches=35, documentation=45, plain=60, small_talk=True,
)  # fmt: skip
"""The second round: whole loops with everyday tools, and when not to call one."""

FULL = AdapterMix(
    gold={
        "bfcl": 540, "seal_tools": 260, "snips": 220, "acebench": 40, "toolalpaca": 25,
        "api_bank": 40, "sgd": 30, "tooltalk": 10,
    },
    irrelevant=280, word_problems=120, sums=25, dates=80, searches=40, documentation=40,
    thoughtful=0.25, plain=140, small_talk=True, reasoned=160, documents=140, max_prompt=440,
    max_tokens=560,
)  # fmt: skip
"""The third round: everything, with refusals, reasoning and JSON in their due share."""

DECIDE = AdapterMix(
    gold={"bfcl": 200, "seal_tools": 60, "snips": 90}, irrelevant=430, word_problems=20, sums=8,
    dates=16, searches=10, documentation=10, plain=60, small_talk=True, reasoned=20,
    documents=12, max_prompt=380, max_tokens=460,
)  # fmt: skip
"""The fourth round: to call or not to call, in equal parts."""

AGAIN = AdapterMix(
    gold={
        "bfcl": 900, "seal_tools": 420, "snips": 420, "acebench": 60, "toolalpaca": 30,
        "api_bank": 40, "sgd": 20,
    },
    irrelevant=430, mismatched=330, word_problems=120, sums=25, dates=90, searches=50,
    documentation=50, thoughtful=0.25, plain=110, small_talk=True, reasoned=150, documents=90,
    max_prompt=460, max_tokens=580,
)  # fmt: skip
"""The fifth round: all of it twice over, and refusals of tools that would have fitted another."""

ORDERED = AdapterMix(
    gold={
        "bfcl": 520, "seal_tools": 330, "snips": 833, "acebench": 60, "toolalpaca": 30,
        "api_bank": 50, "sgd": 60, "tooltalk": 20,
    },
    irrelevant=330, mismatched=260, word_problems=70, sums=20, dates=60, searches=25,
    documentation=25, thoughtful=0.25, plain=70, small_talk=True, reasoned=80, documents=60,
    max_prompt=460, max_tokens=580,
)  # fmt: skip
"""The sixth round: arguments in the order of the tool's schema, as a grammar will ask for them."""

MANY_TOOLS = AdapterMix(
    gold={"bfcl": 150, "seal_tools": 90, "snips": 260, "acebench": 30, "api_bank": 20},
    irrelevant=50, mismatched=20, word_problems=20, sums=8, dates=24, searches=8, documentation=8,
    thoughtful=0.25, plain=10, reasoned=20, documents=10, max_prompt=1100, max_tokens=1200,
    max_tools=8, max_tool_chars=4500,
)  # fmt: skip
"""The seventh round: as many tools as an agent has."""

SETTLE = AdapterMix(
    gold={"bfcl": 100, "seal_tools": 40, "snips": 110}, irrelevant=150, mismatched=50,
    word_problems=10, sums=4, dates=10, searches=4, documentation=4, plain=0, reasoned=10,
    max_prompt=800, max_tokens=900, max_tools=8, max_tool_chars=3200,
)  # fmt: skip
"""The eighth round: to call or not to call once more, among many tools."""

DOCUMENTED = AdapterMix(
    gold={"bfcl": 40, "seal_tools": 15, "snips": 30}, irrelevant=25, mismatched=10,
    word_problems=8, sums=4, dates=10, searches=4, documentation=4, plain=0, reasoned=4,
    documented=110, max_prompt=700, max_tokens=800, max_tools=8, max_tool_chars=2400,
)  # fmt: skip
"""The ninth round: a schema for the answer, and tools beside it."""

GROUPED = AdapterMix(
    gold={"bfcl": 120, "seal_tools": 40, "acebench": 20, "api_bank": 20, "sgd": 20}, irrelevant=130,
    word_problems=20, sums=6, dates=30, searches=10, documentation=10, thoughtful=0.25, plain=20,
    reasoned=20, documented=30, documents=10, catalogues=250, doubted=240, max_prompt=1000,
    max_tokens=1100, max_tools=8, max_tool_chars=2400,
)  # fmt: skip
"""The tenth round: many requests to the same tools, and some that fit none of them."""

PLAIN_TALK = AdapterMix(
    gold={"bfcl": 44, "seal_tools": 12, "snips": 20}, irrelevant=50, mismatched=10,
    word_problems=6, sums=4, dates=8, searches=4, documentation=4, plain=280, reasoned=20,
    documented=12, documents=10, doubted=16, max_prompt=800, max_tokens=900, max_tools=8,
    max_tool_chars=2400,
)  # fmt: skip
"""The eleventh round: questions without tools are answered, not refused for want of one."""

WHOLE = AdapterMix(
    gold={
        "bfcl": 4000, "seal_tools": 1300, "snips": 833, "acebench": 900, "toolalpaca": 190,
        "api_bank": 400, "sgd": 300, "tooltalk": 100,
    },
    irrelevant=700, mismatched=700, word_problems=400, sums=60, dates=200, searches=150,
    documentation=100, thoughtful=0.25, plain=400, reasoned=400, documented=250, documents=150,
    catalogues=400, doubted=900, plain_times=4, max_prompt=1000, max_tokens=1100, max_tools=8,
    max_tool_chars=3200,
)  # fmt: skip
"""The twelfth round: all that the data has, for a GPU."""

LONG = replace(WHOLE, plain=1000, plain_times=2, reasoned=1200, word_problems=600)
"""The last two rounds: the same for longer, with more plain replies and worked equations."""

MINIATURE = AdapterMix(
    gold={"bfcl": 60, "seal_tools": 25, "snips": 25}, irrelevant=15, word_problems=10, sums=5,
    dates=5, searches=5, documentation=5, plain=10, reasoned=4, documents=4, catalogues=2,
    doubted=2, max_prompt=360, max_tokens=420,
)  # fmt: skip
"""Enough to see that everything works."""

MIXES = {
    "broad": BROAD,
    "loops": LOOPS,
    "full": FULL,
    "decide": DECIDE,
    "again": AGAIN,
    "ordered": ORDERED,
    "many_tools": MANY_TOOLS,
    "settle": SETTLE,
    "documented": DOCUMENTED,
    "grouped": GROUPED,
    "plain_talk": PLAIN_TALK,
    "whole": WHOLE,
    "long": LONG,
    "miniature": MINIATURE,
}
