"""LangChain messages as chat templates want them: plain dicts, text content, dict arguments."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from whiflash_engine.errors import ConfigError


class TemplateFunction(TypedDict):
    name: str
    arguments: Mapping[str, object]


class TemplateCall(TypedDict):
    type: Literal["function"]
    id: str
    function: TemplateFunction


class TemplateMessage(TypedDict):
    """One turn, with the keys that chat templates on the hub read."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[TemplateCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


def to_template(messages: Sequence[BaseMessage]) -> list[TemplateMessage]:
    """Every message becomes one turn; consecutive turns of one role are left as they are."""
    if not messages:
        raise ConfigError("messages", [], "there is nothing to answer")
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    return [_turn(message, answered) for message in messages]


def _turn(message: BaseMessage, answered: Collection[str]) -> TemplateMessage:
    """answered: ids of calls."""
    turn: TemplateMessage = {"role": _role(message), "content": _text(message)}
    if message.name:
        turn["name"] = message.name
    if isinstance(message, AIMessage):
        reasoning = _reasoning(message)
        if reasoning:
            turn["reasoning_content"] = reasoning
        calls = [_call(c["id"], c["name"], c["args"]) for c in message.tool_calls]
        # Templates take objects for arguments: what was written instead stands in the answer to
        # the call. One that nobody answered is left out.
        calls += [
            _call(c["id"], c["name"] or "", {})
            for c in message.invalid_tool_calls
            if c["id"] in answered
        ]
        if calls:
            turn["tool_calls"] = calls
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
        if message.status == "error" and not turn["content"].lower().startswith("error"):
            turn["content"] = "Error: " + turn["content"]
    return turn


def _call(id_: str | None, name: str, arguments: Mapping[str, object]) -> TemplateCall:
    return {
        "type": "function",
        "id": id_ or "",
        "function": {"name": name, "arguments": arguments},
    }


def _role(message: BaseMessage) -> str:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, ToolMessage):
        return "tool"
    if isinstance(message, ChatMessage):
        return message.role
    raise ConfigError("messages", message.type, "a chat template has no such kind of message")


# Blocks that hold what is to be seen, heard or opened, by their type or by where they have it.
_DATA_TYPES = frozenset({"image", "image_url", "audio", "video", "media", "document"})
_DATA_KEYS = frozenset({"base64", "data", "source", "file_id", "input_audio", "image_url"})


def _text(message: BaseMessage) -> str:
    """Text blocks joined; calls and reasoning are told elsewhere, images cannot be told. What
    else a tool found is told as JSON."""
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block.get("text") or ""))
        elif isinstance(message, ToolMessage) and not _holds_data(block):
            # LangChain takes any dict with a "type" that it knows for a block
            texts.append(_as_json(block))
        elif not isinstance(message, AIMessage):
            kind = block.get("type", "unknown")
            raise ConfigError("messages", kind, "only text blocks can be read by this model")
    # Blocks of a text are cut anywhere; of a tool's result each is a finding of its own.
    return ("\n" if isinstance(message, ToolMessage) else "").join(texts)


def _as_json(block: Mapping[str, object]) -> str:
    try:
        return json.dumps(block, ensure_ascii=False, default=str)
    except (TypeError, ValueError) as error:
        why = f"cannot be told as JSON: {error}"
        raise ConfigError("messages", block.get("type", "unknown"), why) from error


def _holds_data(block: Mapping[str, object]) -> bool:
    return block.get("type") in _DATA_TYPES or not _DATA_KEYS.isdisjoint(block)


def _reasoning(message: AIMessage) -> str:
    told = message.additional_kwargs.get("reasoning_content")
    if isinstance(told, str):
        return told
    if isinstance(message.content, str):
        return ""
    blocks = [block for block in message.content if isinstance(block, dict)]
    return "".join(str(b.get("reasoning") or "") for b in blocks if b.get("type") == "reasoning")
