"""Three tools that need nothing but this machine: arithmetic, the clock, the documentation.

What a model passes in is not trusted. Each tool answers in one short text; what it cannot do
it says in that text, because the model is the one who has to read it.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from zoneinfo import ZoneInfo, available_timezones

from whiflash_agents.documentation import Library

Number = int | float

MAX_EXPRESSION = 200
MAX_BITS = 4096
_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression such as 2 * (3 + 4).

    Args:
        expression: Numbers with + - * / and parentheses
    """
    try:
        return _shown(evaluate(expression))
    except (ValueError, ArithmeticError, SyntaxError, RecursionError, MemoryError) as error:
        return f"Error: {error}"


def current_time(timezone: str) -> str:
    """Current date and time in a time zone.

    Args:
        timezone: IANA time zone such as Europe/Paris
    """
    try:
        zone = find_zone(timezone)
    except ValueError as error:
        return f"Error: {error}"
    return datetime.now(UTC).astimezone(zone).strftime("%A, %d %B %Y, %H:%M")


def search_docs(query: str) -> str:
    """Search the documentation of whiflash-agents.

    Args:
        query: What to look for
    """
    found = Library.of_this_project().search(query)
    return found or f"Error: nothing about {query!r} in the documentation"


def evaluate(expression: str) -> Number:
    """The value of an expression of numbers; anything else is refused with ValueError."""
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"the expression is longer than {MAX_EXPRESSION} characters")
    text = expression.strip().rstrip("=").replace("^", "**")
    text = text.replace("\u00d7", "*").replace("\u00f7", "/")  # the signs of a schoolbook
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"% of\b", " / 100 *", text)
    return _value(ast.parse(text, mode="eval").body)


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _small(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            return _small(_BINARY[type(node.op)](left, right))
    raise ValueError("only numbers, + - * / // % ** and parentheses are allowed")


def _power(base: Number, exponent: Number) -> Number:
    # Checked before it is computed: 9 ** 9 ** 9 would not come back.
    if isinstance(base, int) and isinstance(exponent, int):
        if base.bit_length() * abs(exponent) > MAX_BITS:
            raise ValueError("the power is too large")
        return _small(base**exponent)
    value = float(base) ** float(exponent)
    if isinstance(value, complex):
        raise ValueError("that power is not a real number")
    return _small(value)


def _small(value: object) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ValueError("the number is too large")
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError("the number is too large")


def _shown(value: Number) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def find_zone(name: str) -> ZoneInfo:
    """The zone of an IANA name, or of a city that one ends in ("Tokyo", "new york")."""
    wanted = name.strip().replace(" ", "_").lower() or "utc"
    zones = sorted(available_timezones())
    exact = [zone for zone in zones if zone.lower() == wanted]
    by_city = [zone for zone in zones if zone.lower().endswith("/" + wanted.split("/")[-1])]
    if exact or by_city:
        return ZoneInfo((exact or by_city)[0])
    cities = {zone.split("/")[-1].lower(): zone for zone in zones}
    close = [cities[city] for city in get_close_matches(wanted.split("/")[-1], cities, n=2)]
    hint = " or ".join(close) or "Europe/Paris"
    raise ValueError(f"unknown time zone {name!r}; try a name such as {hint}")
