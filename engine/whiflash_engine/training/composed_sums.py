"""Composed rows that need a calculator: bare arithmetic and word problems."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable

from whiflash_engine.training.composed_base import Loop, make_tool, tool_name_of
from whiflash_engine.training.gold import Call
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import Json

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
    question = re.sub(
        r"^(Think step by step|Answer the question).*?\n\n", "", question, flags=re.DOTALL
    )
    if rng.random() < 0.7:
        expression = re.sub(r"(?<=[\d)])([-+*/])", r" \1 ", expression)
    tool, key = calculator(rng)
    shown = plain_number(result)
    return Loop(
        question,
        (tool,),
        Call(tool_name_of(tool), {key: expression}),
        shown,
        arithmetic_answer(rng, shown, expression),
    )


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
        question,
        (tool,),
        Call(tool_name_of(tool), {key: expression}),
        shown,
        arithmetic_answer(rng, shown, expression),
    )
