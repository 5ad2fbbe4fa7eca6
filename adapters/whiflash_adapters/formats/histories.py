"""Histories as some families' chat templates demand them, beyond what all templates take."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from whiflash_adapters.formats.base import CallFormat
from whiflash_adapters.formats.harmony import HARMONY
from whiflash_adapters.formats.llama3 import LLAMA3
from whiflash_adapters.formats.mistral import MISTRAL, MISTRAL_LIST
from whiflash_adapters.messages import TemplateCall, TemplateMessage

_ONE_CALL_A_TURN = {LLAMA3.name, HARMONY.name}
_SHORT_IDS = {MISTRAL.name, MISTRAL_LIST.name}
_THOUGHT_OR_TEXT = {HARMONY.name}


def as_demanded(turns: Sequence[TemplateMessage], format_: CallFormat) -> Sequence[TemplateMessage]:
    """The same history for the template of a model that writes calls in this format."""
    if format_.name in _ONE_CALL_A_TURN:
        turns = _one_call_a_turn(turns)
    if format_.name in _THOUGHT_OR_TEXT:
        turns = [_thought_with_text(turn) for turn in turns]
    if format_.name in _SHORT_IDS:
        turns = [_with_short_ids(turn) for turn in turns]
    return turns


def without_system(turns: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """What the system says first stands before the first user's text."""
    start = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    said = [turn["content"] for turn in turns[:start] if turn["content"]]
    first, rest = turns[start : start + 1], turns[start + 1 :]
    if not first or first[0]["role"] != "user":
        return [{"role": "user", "content": "\n\n".join(said)}, *first, *rest]
    return [{**first[0], "content": "\n\n".join([*said, first[0]["content"]])}, *rest]


def _one_call_a_turn(turns: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """A turn of several calls becomes as many, each followed by its result."""
    told: list[TemplateMessage] = []
    at = 0
    while at < len(turns):
        turn, at = turns[at], at + 1
        told.append(turn)
        calls = turn.get("tool_calls", [])
        if len(calls) < 2:
            continue
        results: list[TemplateMessage] = []
        while at < len(turns) and turns[at]["role"] == "tool":
            results.append(turns[at])
            at += 1
        told[-1] = {**turn, "tool_calls": calls[:1]}
        told += _taken(results, calls[0])
        for call in calls[1:]:  # what was said and thought was said before the first
            told.append({"role": "assistant", "content": "", "tool_calls": [call]})
            told += _taken(results, call)
        told += results  # of calls that nobody made
    return told


def _taken(results: list[TemplateMessage], call: TemplateCall) -> list[TemplateMessage]:
    """The call's result, if there is one, no longer among the results."""
    for i, result in enumerate(results):
        if result.get("tool_call_id") == call["id"]:
            return [results.pop(i)]
    return []


def _thought_with_text(turn: TemplateMessage) -> TemplateMessage:
    """Before a call there is room for one of the two, in the channel of thoughts."""
    thought = turn.get("reasoning_content")
    if not thought or not turn["content"] or not turn.get("tool_calls"):
        return turn
    return {**turn, "reasoning_content": f"{thought}\n{turn['content']}", "content": ""}


def _with_short_ids(turn: TemplateMessage) -> TemplateMessage:
    """Nine letters or digits, whoever made the call: the same for the call and its result."""
    told: TemplateMessage = {**turn}
    if "tool_calls" in turn:
        told["tool_calls"] = [{**call, "id": _short(call["id"])} for call in turn["tool_calls"]]
    if "tool_call_id" in turn:
        told["tool_call_id"] = _short(turn["tool_call_id"])
    return told


def _short(id_: str) -> str:
    return sha256(id_.encode()).hexdigest()[:9]
