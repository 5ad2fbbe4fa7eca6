"""Gold tool calls of the data sources, brought into one form: a list of (name, arguments).

Every source states its reference in a form of its own. A row without a usable gold call
(nested calls, placeholders, arguments the tool does not have) yields None and is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import Json, PromptRow


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, JsonValue]


def render_calls(calls: Sequence[Call]) -> str:
    """The text of an assistant's tool turn, exactly as the chat template writes it."""
    lines = []
    for call in calls:
        name = json.dumps(call.name, ensure_ascii=False)
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        lines.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(lines)


def parse_calls(text: str) -> list[Call] | None:
    """The inverse of `render_calls` for generated text; None where a call is malformed."""
    calls = []
    for body in re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", text, flags=re.DOTALL):
        try:
            value = json.loads(body)
        except json.JSONDecodeError:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        calls.append(Call(value["name"], arguments))
    return calls or None


def function_of(tool: Json) -> Json:
    inner = tool.get("function")
    return inner if isinstance(inner, dict) else tool


def tool_name(tool: Json) -> str:
    return str(function_of(tool).get("name", ""))


def words(text: str) -> set[str]:
    """In lower case, names taken apart: "getWeather_v2" -> {"weather"}. Those of less than four
    letters say nothing."""
    found = re.findall(r"[A-Za-z][a-z]+", text)
    return {word.lower() for word in found if len(word) > 3}


def properties_of(tool: Json) -> Json:
    """Of the tool's parameters, by name; empty where they are not stated."""
    schema = function_of(tool).get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties if isinstance(properties, dict) else {}


def required_by(tool: Json) -> set[str]:
    schema = function_of(tool).get("parameters")
    required = schema.get("required") if isinstance(schema, dict) else None
    return {str(item) for item in required} if isinstance(required, list) else set()


def _first(value: JsonValue) -> JsonValue:
    """BFCL lists what it accepts; inside an object every member is such a list again."""
    if isinstance(value, dict):
        picked: Json = {}
        for key, items in value.items():
            if isinstance(items, list) and items and "" not in items:
                picked[key] = _first(items[0])
        return picked
    if isinstance(value, list):
        return [_first(item) for item in value]
    return value


def _bfcl(ref: Json) -> list[Call] | None:
    truth = ref.get("ground_truth")
    if not isinstance(truth, list):
        return None
    calls = []
    for item in truth:
        if not isinstance(item, dict):
            return None
        for name, accepted in item.items():
            if not isinstance(accepted, dict):
                return None
            arguments: Json = {}
            for key, values in accepted.items():
                if not isinstance(values, list) or not values:
                    return None
                if "" not in values:
                    arguments[key] = _first(values[0])
            calls.append(Call(name, arguments))
    return calls or None


def _seal_tools(ref: Json) -> list[Call] | None:
    calling = ref.get("calling")
    if not isinstance(calling, list) or "API_call_" in json.dumps(
        [item.get("parameters") for item in calling if isinstance(item, dict)]
    ):
        return None
    calls = []
    for item in calling:
        if not isinstance(item, dict) or not isinstance(item.get("parameters"), dict):
            return None
        parameters = item["parameters"]
        assert isinstance(parameters, dict)
        calls.append(Call(str(item.get("api")), parameters))
    return calls or None


def _acebench(ref: Json) -> list[Call] | None:
    truth = ref.get("ground_truth")
    if not isinstance(truth, dict) or not str(ref.get("ace_id", "")).startswith("normal"):
        return None
    calls = []
    for name, arguments in truth.items():
        if not isinstance(arguments, dict):
            return None
        calls.append(Call(re.sub(r"_\d+$", "", name), arguments))
    return calls or None


def _toolalpaca(ref: Json) -> list[Call] | None:
    golden = ref.get("golden")
    if not isinstance(golden, list) or len(golden) != 1 or not isinstance(golden[0], dict):
        return None
    try:
        arguments = json.loads(str(golden[0].get("Action_Input")))
    except json.JSONDecodeError:
        return None
    if not isinstance(arguments, dict):
        return None
    kept = {key: value for key, value in arguments.items() if value != ""}
    return [Call(str(golden[0].get("Action")), kept)]


def _single(ref: Json) -> list[Call] | None:
    gold = ref.get("gold")
    if not isinstance(gold, dict) or not isinstance(gold.get("args"), dict):
        return None
    arguments = gold["args"]
    assert isinstance(arguments, dict)
    return [Call(str(gold.get("name")), arguments)]


_READERS = {
    "bfcl": _bfcl,
    "seal_tools": _seal_tools,
    "acebench": _acebench,
    "toolalpaca": _toolalpaca,
    "snips": _single,
    "api_bank": _single,
    "sgd": _single,
    "tooltalk": _single,
}


def gold_calls(row: PromptRow, ref: JsonValue) -> list[Call] | None:
    """The gold calls of a row, if they are usable: known tools, known and complete arguments."""
    reader = _READERS.get(row.source)
    calls = reader(ref) if reader is not None and isinstance(ref, dict) else None
    if calls is None:
        return None
    tools = {tool_name(tool): tool for tool in row.tools}
    for call in calls:
        if call.name not in tools:
            return None
        tool = tools[call.name]
        if not required_by(tool) <= set(call.arguments) <= properties_of(tool).keys():
            return None
    return [_arranged(call, tools[call.name]) for call in calls]


def _arranged(call: Call, tool: Json) -> Call:
    arguments = as_declared(dict(call.arguments), function_of(tool).get("parameters"))
    assert isinstance(arguments, dict)
    return Call(call.name, arguments)


def as_declared(value: JsonValue, schema: JsonValue) -> JsonValue:
    """An instance with its keys in the order, and its scalars of the types, that a schema states.

    A grammar lets no other order through: who was taught another one can only skip arguments.
    Sources write "5" where a number is asked for, and 5 where a string is. Follows `properties`
    and `items`, the only ways in which the sources nest.
    """
    if not isinstance(schema, dict):
        return value
    declared, kind = schema.get("properties"), schema.get("type")
    if isinstance(value, dict) and isinstance(declared, dict):
        order = [key for key in (*declared, *value) if key in value]
        return {key: as_declared(value[key], declared.get(key)) for key in order}
    if isinstance(value, list):
        return [as_declared(item, schema.get("items")) for item in value]
    if kind in ("integer", "number") and isinstance(value, str):
        whole = re.fullmatch(r"-?\d+", value) is not None
        decimal = kind == "number" and re.fullmatch(r"-?\d+\.\d+", value) is not None
        return int(value) if whole else float(value) if decimal else value
    if kind == "boolean" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def last_number(text: str) -> float | None:
    """12,500 and 3.50 are numbers; None where there is none."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


def gold_number(ref: JsonValue) -> float | None:
    """The number in a reference's `answer`, if it is one."""
    answer = ref.get("answer") if isinstance(ref, dict) else None
    if isinstance(answer, list):
        answer = answer[0] if len(answer) == 1 else None
    return None if answer is None else last_number(str(answer))


def is_irrelevant(row: PromptRow, ref: JsonValue) -> bool:
    """True for rows whose tools cannot answer the question."""
    if not isinstance(ref, dict):
        return False
    if row.source == "when2call":
        return ref.get("behaviour") == "cannot_answer"
    found = str(ref.get("bfcl_id", ""))
    return row.source == "bfcl" and found.startswith(("irrelevance_", "live_irrelevance_"))
