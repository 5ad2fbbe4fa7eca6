"""The Hermes form of tool calls, as prompt text.

    <tool_call>
    {"name": "calculate", "arguments": {"expression": "2 * 3"}}
    </tool_call>

Most templates that know tools render this themselves. What stands here is for those that
do not: the system block that explains the form, and a history told in plain turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from whiflash_adapters.messages import TemplateMessage

START = "<tool_call>"
END = "</tool_call>"
THINK = "<think>"
THINK_END = "</think>"

Tool = Mapping[str, object]
"""One tool as OpenAI writes it: {"type": "function", "function": {name, parameters, ...}}."""


def function_of(tool: Tool) -> Mapping[str, object]:
    """The inner part, which holds name, description and parameters."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def name_of(tool: Tool) -> str:
    return str(function_of(tool).get("name", ""))


_ORDER = ("type", "name", "function", "description", "parameters", "enum", "properties", "items")


def in_usual_order(spec: Tool) -> dict[str, object]:
    """The same tool with its keys in the order that most training data has them in.

    LangChain writes schemas in an order of its own, which a small model has rarely seen.
    """
    ordered = _ordered(spec)
    assert isinstance(ordered, dict)
    return ordered


def _ordered(node: object) -> object:
    if isinstance(node, list):
        return [_ordered(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    keys = sorted(node, key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
    return {
        key: {name: _ordered(inner) for name, inner in node[key].items()}
        if key == "properties" and isinstance(node[key], Mapping)
        else _ordered(node[key])
        for key in keys
    }


def system_block(tools: Sequence[Tool]) -> str:
    """What a system prompt has to say about tools when the template says nothing."""
    listing = "\n".join(json.dumps(function_of(tool), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions:\n<tools>\n{listing}\n</tools>\n"
        "To call one, answer with its name and arguments in JSON:\n"
        f'{START}\n{{"name": "NAME", "arguments": {{"KEY": VALUE}}}}\n{END}'
    )


def write_call(name: str, arguments: Mapping[str, object]) -> str:
    """One call as the model would have written it."""
    body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"{START}\n{body}\n{END}"


def in_plain_turns(
    messages: Sequence[TemplateMessage], tools: Sequence[Tool]
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
        calls = [
            write_call(call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls", [])
        ]
        turns.append({"role": message["role"], "content": "\n".join([content, *calls]).strip()})
    if tools:
        block = system_block(tools)
        if turns and turns[0]["role"] == "system":
            turns[0]["content"] += "\n\n" + block
        else:
            turns.insert(0, {"role": "system", "content": block})
    return turns
