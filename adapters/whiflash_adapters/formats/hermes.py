"""The Hermes form: one JSON object per call, in a tag.

    <tool_call>
    {"name": "calculate", "arguments": {"expression": "2 * 3"}}
    </tool_call>

Written by Hermes, Qwen2.5, Qwen3, SmolLM3, and what this library makes of SmolLM2. It is also
what a model is asked for whose template knows of no tools.
"""

from __future__ import annotations

import regex

from whiflash_adapters.formats.form import JsonForm

# A name with "<" in it takes the slower way over a whole body, so that the closing tag is
# found at the same place however the text is cut.
NAME = r'("(?:[^"\\<]|\\[^<])*")'
ARGUMENTS = r'"(?:arguments|parameters)"\s*:\s*(?=\{)'

HERMES = JsonForm(
    name="hermes",
    section="<tool_call>",
    head='\n{"name": ',
    middle=', "arguments": ',
    tail="}\n</tool_call>",
    between="\n<tool_call>",
    opener="<tool_call>",
    head_pattern=regex.compile(rf'\s*\{{\s*"name"\s*:\s*{NAME}\s*,\s*{ARGUMENTS}'),
    tail_pattern=regex.compile(r"\s*\}\s*</tool_call>"),
    end="</tool_call>",
)
