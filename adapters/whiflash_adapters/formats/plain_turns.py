"""A conversation with tools for chat templates that know of none: told in plain turns."""

from __future__ import annotations

import json
from collections.abc import Sequence

from whiflash_adapters.formats.base import CallFormat
from whiflash_adapters.formats.tools import Tool, function_of
from whiflash_adapters.messages import TemplateMessage


def system_block(tools: Sequence[Tool], format_: CallFormat) -> str:
    """What a system prompt has to say about tools when the template says nothing."""
    listing = "\n".join(json.dumps(function_of(tool), ensure_ascii=False) for tool in tools)
    example = format_.write([("NAME", {"KEY": "VALUE"})])
    return (
        f"You may call these functions:\n<tools>\n{listing}\n</tools>\n"
        f"To call one, answer with its name and arguments in this form:\n{example}"
    )


def in_plain_turns(
    messages: Sequence[TemplateMessage], tools: Sequence[Tool], format_: CallFormat
) -> list[TemplateMessage]:
    """The same conversation without the fields and roles that such a template ignores."""
    turns: list[TemplateMessage] = []
    previous = ""
    for message in messages:
        content, before, previous = message["content"], previous, message["role"]
        if message["role"] == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if before == "tool":  # results of one answer's calls share a turn
                turns[-1]["content"] += "\n" + content
                continue
            turns.append({"role": "user", "content": content})
            continue
        asked = [call["function"] for call in message.get("tool_calls", [])]
        calls = format_.write([(call["name"], call["arguments"]) for call in asked])
        turns.append({"role": message["role"], "content": f"{content}\n{calls}".strip()})
    if tools:
        block = system_block(tools, format_)
        if turns and turns[0]["role"] == "system":
            turns[0]["content"] += "\n\n" + block
        else:
            turns.insert(0, {"role": "system", "content": block})
    return turns
