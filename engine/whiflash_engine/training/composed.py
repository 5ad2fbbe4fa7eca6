"""Tool rows composed from templates: arithmetic, dates and time zones, search.

Each is a whole loop: question -> call -> tool result -> answer. Names, parameter names,
descriptions and phrasings vary, so that the model learns the loop and not one tool.
All randomness comes from the `random.Random` that is handed in.
"""

from __future__ import annotations

from whiflash_engine.training.composed_base import Family, Loop, make_tool, tool_name_of
from whiflash_engine.training.composed_dates import (
    add_days,
    convert_time,
    days_between,
    time_now,
    weekday,
)
from whiflash_engine.training.composed_search import documentation, web_search
from whiflash_engine.training.composed_sums import direct_sum, evaluate, word_problem

__all__ = [
    "DATE_FAMILIES", "FAMILIES", "Family", "Loop", "direct_sum", "documentation", "evaluate",
    "make_tool", "tool_name_of", "web_search", "word_problem",
]  # fmt: skip

DATE_FAMILIES: tuple[Family, ...] = (
    time_now, time_now, days_between, days_between, weekday, add_days, convert_time,
)  # fmt: skip

FAMILIES: tuple[Family, ...] = (
    direct_sum, time_now, days_between, weekday, add_days, convert_time, documentation,
)  # fmt: skip
