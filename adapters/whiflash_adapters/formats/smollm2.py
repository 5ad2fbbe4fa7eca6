"""SmolLM2's own form: a JSON list of calls in one tag (its card on the hub, section on tools).

<tool_call>[{"name": "calculate", "arguments": {"expression": "2 * 3"}}]</tool_call>
"""

from __future__ import annotations

import regex

from whiflash_adapters.formats.form import JsonForm
from whiflash_adapters.formats.hermes import ARGUMENTS, NAME

SMOLLM2 = JsonForm(
    name="smollm2",
    section="<tool_call>[",
    head='{"name": ',
    middle=', "arguments": ',
    tail="}",
    between=", ",
    close="]</tool_call>",
    opener="<tool_call>",
    head_pattern=regex.compile(rf'\s*\[?\s*\{{\s*"name"\s*:\s*{NAME}\s*,\s*{ARGUMENTS}'),
    tail_pattern=regex.compile(r"\s*\}\s*(?:(,)|\]\s*</tool_call>)"),
    end="</tool_call>",
)
