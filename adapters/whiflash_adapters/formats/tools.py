"""Tools as OpenAI writes them, and what the formats need to know of one."""

from __future__ import annotations

from collections.abc import Mapping

Tool = Mapping[str, object]
"""One tool as OpenAI writes it: {"type": "function", "function": {name, parameters, ...}}."""


def function_of(tool: Tool) -> Mapping[str, object]:
    """The inner part, which holds name, description and parameters."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def name_of(tool: Tool) -> str:
    return str(function_of(tool).get("name", ""))


def parameters_of(tool: Tool) -> Mapping[str, object]:
    """The JSON schema of the arguments; no arguments where there is none."""
    parameters = function_of(tool).get("parameters")
    if isinstance(parameters, Mapping) and parameters:
        return parameters
    return {"type": "object", "properties": {}}


def is_strict(tool: Tool) -> bool:
    """Whether it asks for its schema to be followed to the letter."""
    return function_of(tool).get("strict") is True


def without_strict(tool: Tool) -> Tool:
    """As a model is told of it: `strict` is meant for whoever runs one."""
    if isinstance(inner := tool.get("function"), Mapping):
        return {**tool, "function": without_strict(inner)}
    return {key: value for key, value in tool.items() if key != "strict"}


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
