"""Mistral's two forms, told apart by whether the vocabulary has `[ARGS]`.

[TOOL_CALLS] [{"name": "calculate", "arguments": {"expression": "2 * 3"}}]      to 2024
[TOOL_CALLS]calculate[ARGS]{"expression": "2 * 3"}                              since
"""

from __future__ import annotations

import regex

from whiflash_adapters.formats.form import JsonForm
from whiflash_adapters.formats.hermes import ARGUMENTS, NAME

_THINK = ("[THINK]", "[/THINK]")
_ID = r'(?:"id"\s*:\s*"[^"]*"\s*,\s*)?'

MISTRAL_LIST = JsonForm(
    name="mistral-list",
    section="[TOOL_CALLS] [",
    head='{"name": ',
    middle=', "arguments": ',
    tail="}",
    between=", ",
    close="]",
    opener="[TOOL_CALLS]",
    head_pattern=regex.compile(rf'\s*\[?\s*\{{\s*{_ID}"name"\s*:\s*{NAME}\s*,\s*{_ID}{ARGUMENTS}'),
    # some templates write an id behind the arguments
    tail_pattern=regex.compile(r'\s*(?:,\s*"id"\s*:\s*"[^"]*"\s*)?\}\s*(?:(,)|\])'),
    think=_THINK,
)

MISTRAL = JsonForm(
    name="mistral",
    section="[TOOL_CALLS]",
    head="",
    middle="[ARGS]",
    tail="",
    between="[TOOL_CALLS]",
    opener="[TOOL_CALLS]",
    quoted=False,
    head_pattern=regex.compile(r"([^\[\{]*)(?:\[CALL_ID\][^\[]*)?\[ARGS\]\s*(?=\{)"),
    tail_pattern=regex.compile(""),
    think=_THINK,
)
