"""Llama 3.1 and 3.2: the answer is a JSON object, or several with ";" between them.

    {"name": "calculate", "parameters": {"expression": "2 * 3"}}

Behind `<|python_tag|>` or without it; that token is not part of the text. The models end such
a turn with `<|eom_id|>` or `<|eot_id|>` (Meta's model card, "JSON based tool calling").
"""

from __future__ import annotations

import regex

from whiflash_adapters.formats.form import JsonForm
from whiflash_adapters.formats.hermes import ARGUMENTS, NAME

LLAMA3 = JsonForm(
    name="llama3",
    section="",
    head='{"name": ',
    middle=', "parameters": ',
    tail="}",
    between="; ",
    opener="",
    head_pattern=regex.compile(
        rf'[\s;]*\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*{NAME}\s*,\s*{ARGUMENTS}'
    ),
    tail_pattern=regex.compile(r"\s*\}"),
)
