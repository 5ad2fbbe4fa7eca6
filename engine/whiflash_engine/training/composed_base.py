"""What every composed row consists of."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from whiflash_engine.training.gold import Call
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import Json


@dataclass(frozen=True)
class Loop:
    """One composed row: the gold call, what the tool returns, what is said then."""

    question: str
    tools: tuple[Json, ...]
    call: Call
    result: str
    answer: str


Family = Callable[[random.Random], Loop]
"""Makes one row of its family."""


def make_tool(name: str, description: str, parameters: Mapping[str, tuple[str, str]]) -> Json:
    """An OpenAI-style tool; parameters are {name: (JSON type, description)}, all required."""
    properties: Json = {}
    for key, (kind, text) in parameters.items():
        properties[key] = {"type": kind, "description": text} if text else {"type": kind}
    required: list[JsonValue] = list(parameters)
    schema: Json = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


def tool_name_of(tool: Json) -> str:
    function = tool["function"]
    assert isinstance(function, dict)
    return str(function["name"])
