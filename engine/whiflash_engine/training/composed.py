"""Tool rows composed from templates: arithmetic, dates and time zones, search.

Each is a whole loop: question -> call -> tool result -> answer. Names, parameter names,
descriptions and phrasings vary, so that the model learns the loop and not one tool.
All randomness comes from the `random.Random` that is handed in.
"""

from __future__ import annotations

import ast
import json
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from whiflash_engine.training.composed_words import CITIES, DOC_FACTS, PRODUCTS
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


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str) -> float | None:
    """The value of + - * / and parentheses over numbers; None for anything else."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(expression)

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def plain_number(value: float) -> str:
    """504.0 -> "504", 0.30000000000000004 -> "0.3"."""
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0").rstrip(".")


def calculator(rng: random.Random) -> tuple[Json, str]:
    """A calculator under one of many names, and the name of its parameter."""
    key = rng.choice(["expression"] * 3 + ["expr", "formula", "query", "input"])
    name = rng.choice(
        ["calculator"] * 3 + ["calculate", "evaluate", "math", "compute", "calc", "arithmetic"]
    )
    description = rng.choice(
        [
            "Evaluate an arithmetic expression.",
            "Computes the value of a mathematical expression such as 2 * (3 + 4).",
            "Useful for when you need to answer questions about math.",
            "Work out a sum, product, difference or quotient exactly.",
            "A calculator for + - * / and parentheses.",
        ]
    )
    text = rng.choice(["The expression to evaluate", "for example 12 * 7", "", "An expression"])
    return make_tool(name, description, {key: ("string", text)}), key


def arithmetic_answer(rng: random.Random, result: str, expression: str) -> str:
    return rng.choice(
        [
            f"The answer is {result}.",
            f"The result is {result}.",
            f"That makes {result}.",
            f"{expression} = {result}",
            f"It is {result}.",
        ]
    )


def word_problem(rng: random.Random, text: str, ref: JsonValue) -> Loop | None:
    """A MAWPS problem with its equation as the calculator's input; None if it is no plain sum."""
    equations = ref.get("equations") if isinstance(ref, dict) else None
    if not isinstance(equations, list) or len(equations) != 1:
        return None
    sides = [side.strip() for side in str(equations[0]).split("=")]
    bare = [side for side in sides if not re.search(r"[A-Za-z]", side)]
    if len(sides) != 2 or len(bare) != 1:
        return None
    expression = re.sub(r"(?<=\d)\.0+(?!\d)", "", bare[0].replace(" ", ""))
    while re.fullmatch(r"\(([^()]*)\)", expression):
        expression = expression[1:-1]
    result = evaluate(expression)
    if result is None or not re.search(r"\d[-+*/]", expression):
        return None
    question = re.sub(r"\n\n(Let's think|Explain|Think).*$", "", text, flags=re.DOTALL)
    question = re.sub(r"^(Think step by step|Answer the question).*?\n\n", "", question, flags=re.DOTALL)
    if rng.random() < 0.7:
        expression = re.sub(r"(?<=[\d)])([-+*/])", r" \1 ", expression)
    tool, key = calculator(rng)
    shown = plain_number(result)
    return Loop(
        question, (tool,), Call(tool_name_of(tool), {key: expression}), shown,
        arithmetic_answer(rng, shown, expression),
    )


def tool_name_of(tool: Json) -> str:
    function = tool["function"]
    assert isinstance(function, dict)
    return str(function["name"])


def direct_sum(rng: random.Random) -> Loop:
    """Bare arithmetic in words or symbols."""
    a, b, c = rng.randint(2, 9999), rng.randint(2, 999), rng.randint(2, 99)
    if rng.random() < 0.2:
        a, b = round(rng.uniform(1, 99), 1), round(rng.uniform(1, 99), 2)  # type: ignore[assignment]
    expression, words = rng.choice(
        [
            (f"{a} * {b}", f"{a} times {b}"),
            (f"{a} + {b}", f"{a} plus {b}"),
            (f"{a} - {b}", f"{a} minus {b}"),
            (f"{a} / {c}", f"{a} divided by {c}"),
            (f"({a} + {b}) * {c}", f"({a} + {b}) * {c}"),
            (f"{a} * {c} + {b}", f"{a} * {c} + {b}"),
            (f"{a} * {c} - {b}", f"{a} times {c}, minus {b}"),
            (f"{a} * {c} / 100", f"{c}% of {a}"),
            (f"{a} + {b} + {c}", f"the sum of {a}, {b} and {c}"),
        ]
    )
    value = evaluate(expression)
    assert value is not None
    asked = rng.choice([words, words, expression])
    question = rng.choice(
        [
            f"What is {asked}?",
            f"Calculate {asked}.",
            f"How much is {asked}?",
            f"Please work out {asked} for me.",
            f"{asked} = ?",
            f"I need the exact value of {asked}.",
        ]
    )
    tool, key = calculator(rng)
    shown = plain_number(value)
    return Loop(
        question, (tool,), Call(tool_name_of(tool), {key: expression}), shown,
        arithmetic_answer(rng, shown, expression),
    )


def _spoken(rng: random.Random, day: date) -> str:
    month = day.strftime("%B")
    return rng.choice(
        [
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}, {day.year}",
            f"the {day.day}{_ordinal(day.day)} of {month} {day.year}",
            day.isoformat(),
        ]
    )


def _ordinal(number: int) -> str:
    if 10 <= number % 100 <= 20:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _day(rng: random.Random) -> date:
    return date(1950, 1, 1) + timedelta(days=rng.randint(0, 32000))


def time_now(rng: random.Random) -> Loop:
    city, zone = rng.choice(CITIES)
    key = rng.choice(["timezone"] * 3 + ["tz", "zone", "time_zone"])
    tool = make_tool(
        rng.choice(["get_current_time", "current_time", "time_now", "clock", "world_clock", "now"]),
        rng.choice(
            [
                "Current date and time in a time zone.",
                "Tells the time now in an IANA time zone such as Europe/Paris.",
                "Get the current local time.",
            ]
        ),
        {key: ("string", rng.choice(["IANA time zone", "for example America/Chicago", ""]))},
    )
    moment = datetime(2025, 1, 1, tzinfo=ZoneInfo("UTC")) + timedelta(minutes=rng.randint(0, 999999))
    local = moment.astimezone(ZoneInfo(zone))
    result = rng.choice(
        [
            local.isoformat(timespec="minutes"),
            local.strftime("%Y-%m-%d %H:%M"),
            local.strftime("%A, %d %B %Y, %H:%M"),
            local.strftime("%H:%M"),
        ]
    )
    question = rng.choice(
        [
            f"What time is it in {city}?",
            f"What's the time in {city} right now?",
            f"Tell me the current time in {city}.",
            f"How late is it in {city} now?",
            f"I want to call a friend in {city}. What time is it there?",
            f"Do you know what time it is in {city}?",
        ]
    )
    clock = local.strftime("%H:%M")
    answer = rng.choice(
        [f"It is {clock} in {city}.", f"The time in {city} is {clock}.", f"In {city} it is {clock}."]
    )
    return Loop(question, (tool,), Call(tool_name_of(tool), {key: zone}), result, answer)


def days_between(rng: random.Random) -> Loop:
    first = _day(rng)
    second = first + timedelta(days=rng.randint(3, 1500))
    one, two = rng.choice(
        [("start", "end"), ("start_date", "end_date"), ("from_date", "to_date"), ("date1", "date2")]
    )
    hint = rng.choice(["YYYY-MM-DD", "ISO date", "as YYYY-MM-DD"])
    tool = make_tool(
        rng.choice(["days_between", "date_diff", "count_days", "date_difference", "day_count"]),
        rng.choice(["Number of days between two dates.", "How many days lie between two dates."]),
        {one: ("string", hint), two: ("string", hint)},
    )
    left, right = _spoken(rng, first), _spoken(rng, second)
    question = rng.choice(
        [
            f"How many days are there between {left} and {right}?",
            f"How many days is it from {left} to {right}?",
            f"Count the days from {left} until {right}.",
            f"My project runs from {left} to {right}. How many days is that?",
        ]
    )
    days = (second - first).days
    answer = rng.choice(
        [f"There are {days} days between them.", f"That is {days} days.", f"It is {days} days."]
    )
    arguments: Json = {one: first.isoformat(), two: second.isoformat()}
    result = rng.choice([str(days), f"{days} days", json.dumps({"days": days})])
    return Loop(question, (tool,), Call(tool_name_of(tool), arguments), result, answer)


def weekday(rng: random.Random) -> Loop:
    day = _day(rng)
    key = rng.choice(["date", "day", "date_string"])
    tool = make_tool(
        rng.choice(["day_of_week", "weekday", "get_weekday", "which_day"]),
        rng.choice(["Name of the weekday of a date.", "Which day of the week a date falls on."]),
        {key: ("string", rng.choice(["YYYY-MM-DD", "ISO date"]))},
    )
    spoken, name = _spoken(rng, day), day.strftime("%A")
    question = rng.choice(
        [
            f"What day of the week was {spoken}?",
            f"Which weekday is {spoken}?",
            f"I was born on {spoken}. What day of the week was that?",
        ]
    )
    answer = rng.choice([f"It was a {name}.", f"That is a {name}.", f"{spoken} is a {name}."])
    return Loop(question, (tool,), Call(tool_name_of(tool), {key: day.isoformat()}), name, answer)


def add_days(rng: random.Random) -> Loop:
    day, count = _day(rng), rng.randint(2, 400)
    one, two = rng.choice([("date", "days"), ("start", "days"), ("start_date", "num_days")])
    tool = make_tool(
        rng.choice(["add_days", "date_add", "shift_date"]),
        rng.choice(["Add a number of days to a date.", "The date some days after another date."]),
        {one: ("string", "YYYY-MM-DD"), two: ("integer", "how many days")},
    )
    spoken, later = _spoken(rng, day), (day + timedelta(days=count)).isoformat()
    question = rng.choice(
        [
            f"What date is {count} days after {spoken}?",
            f"Which date comes {count} days after {spoken}?",
            f"An invoice from {spoken} is due in {count} days. On which date?",
        ]
    )
    answer = rng.choice([f"That is {later}.", f"The date is {later}.", f"It falls on {later}."])
    arguments: Json = {one: day.isoformat(), two: count}
    return Loop(question, (tool,), Call(tool_name_of(tool), arguments), later, answer)


def convert_time(rng: random.Random) -> Loop:
    (city, zone), (other, other_zone) = rng.sample(CITIES, 2)
    clock = f"{rng.randint(0, 23):02d}:{rng.choice([0, 15, 30, 45]):02d}"
    one, two = rng.choice(
        [("from_timezone", "to_timezone"), ("source", "target"), ("from_tz", "to_tz")]
    )
    tool = make_tool(
        rng.choice(["convert_time", "timezone_convert", "convert_timezone"]),
        rng.choice(["Convert a time from one time zone to another.", "Translate a clock time."]),
        {"time": ("string", "HH:MM"), one: ("string", "IANA zone"), two: ("string", "IANA zone")},
    )
    hour, minute = map(int, clock.split(":"))
    there = datetime(2026, 2, 3, hour, minute, tzinfo=ZoneInfo(zone))
    shown = there.astimezone(ZoneInfo(other_zone)).strftime("%H:%M")
    question = rng.choice(
        [
            f"When it is {clock} in {city}, what time is it in {other}?",
            f"Convert {clock} {city} time to {other} time.",
            f"Our call is at {clock} in {city}. What time is that in {other}?",
        ]
    )
    answer = rng.choice([f"It is {shown} in {other}.", f"That is {shown} in {other}."])
    arguments: Json = {"time": clock, one: zone, two: other_zone}
    return Loop(question, (tool,), Call(tool_name_of(tool), arguments), shown, answer)


def documentation(rng: random.Random) -> Loop:
    """Search in some product's documentation; the answer is read from what comes back."""
    product = rng.choice(PRODUCTS)
    subject, fact, asked = rng.choice(DOC_FACTS)
    key = rng.choice(["query"] * 4 + ["q", "question", "text"])
    tool = make_tool(
        rng.choice(
            ["search_docs", "search_documentation", "docs_search", "search_files", "lookup_docs"]
        ),
        rng.choice(
            [
                f"Search the documentation of {product}.",
                "Search the project's documentation files and return matching passages.",
                "Find passages in the documentation.",
            ]
        ),
        {key: ("string", rng.choice(["What to look for", "search words", ""]))},
    )
    question = rng.choice(
        [
            f"{asked.format(p=product)}",
            f"According to the documentation, {_lower(asked.format(p=product))}",
            f"Look it up in the docs: {_lower(asked.format(p=product))}",
        ]
    )
    sentence = fact.format(p=product)
    others = [text.format(p=product) for _, text, _ in rng.sample(DOC_FACTS, 2)]
    page = rng.choice(["guide.md", "docs/usage.md", "README.md", "reference.md", "docs/index.md"])
    passages = [f"{page}: {sentence}"] + [f"{page}: {text}" for text in others if text != sentence]
    result = "\n".join(passages[: rng.randint(1, len(passages))])
    answer = rng.choice([sentence, sentence, f"According to the documentation: {sentence}"])
    return Loop(question, (tool,), Call(tool_name_of(tool), {key: subject}), result, answer)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def web_search(rng: random.Random, question: str, tools: Sequence[Json], ref: JsonValue) -> Loop | None:
    """A natural question; the result text is composed around the known answer."""
    answers = ref.get("answer") if isinstance(ref, dict) else None
    if not isinstance(answers, list) or not answers or not tools:
        return None
    known, tool = str(answers[0]), tools[0]
    function = tool.get("function")
    schema = function.get("parameters") if isinstance(function, dict) else None
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or "query" not in properties or len(known) > 60:
        return None
    plain = question.strip().rstrip("?").strip()
    result = rng.choice(
        [
            f"{plain}: {known}.",
            f"1. {known} - the answer to \"{plain}\".\n2. Related: history and background.",
            json.dumps([{"title": plain.capitalize(), "content": f"{known}."}], ensure_ascii=False),
            f"{plain.capitalize()}? {known}. See also the list of related articles.",
        ]
    )
    answer = rng.choice([f"{known}.", f"The answer is {known}.", f"According to the search: {known}."])
    return Loop(question, tuple(tools), Call(tool_name_of(tool), {"query": plain}), result, answer)


Family = Callable[[random.Random], Loop]

DATE_FAMILIES: tuple[Family, ...] = (
    time_now, time_now, days_between, days_between, weekday, add_days, convert_time,
)  # fmt: skip

FAMILIES: tuple[Family, ...] = (
    direct_sum, time_now, days_between, weekday, add_days, convert_time, documentation,
)  # fmt: skip
