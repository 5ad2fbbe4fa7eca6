"""Compiling the grammar of an answer, and saying whose schema is at fault if it cannot be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.tools import name_of
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.request import Request
from whiflash_engine.errors import ConstraintError

if TYPE_CHECKING:
    from whiflash_engine.constraint import Constraint


def compiled(engine: TokenEngine, grammar: str, request: Request) -> Constraint:
    """ConstraintError names the tool, or the response_format, and the keyword."""
    try:
        return engine.grammar(grammar)
    except ConstraintError as error:
        raise ConstraintError(f"{_culprit(engine, request)}: {_why(error)}") from error


def _culprit(engine: TokenEngine, request: Request) -> str:
    """Only now, when something is wrong, is each tool compiled by itself."""
    for tool in request.allowed:
        ask = Ask([tool], "required", strict=request.strict, reasoning=request.reasoning)
        try:
            engine.grammar(request.format.grammar(ask))
        except ConstraintError:
            return f"tool {name_of(tool)!r}"
    return "response_format"


def _why(error: ConstraintError) -> str:
    """What llguidance says, without the place in our grammar."""
    return str(error).strip().split("\n")[0].split("JSON schema: ")[-1]
