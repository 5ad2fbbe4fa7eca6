"""Compiling the grammar of an answer, and saying whose schema is at fault if it cannot be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.lark import LET_PASS
from whiflash_adapters.formats.tools import name_of
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.request import Request
from whiflash_engine.errors import ConstraintError

if TYPE_CHECKING:
    from whiflash_engine.constraint import Constraint

_DOCUMENT = "response_format"


def compiled(engine: TokenEngine, grammar: str, request: Request) -> Constraint:
    """ConstraintError names the tool, or the response_format, the keyword, and the way out."""
    try:
        return engine.grammar(grammar, request.format.signposts)
    except ConstraintError as error:
        culprit, said = _culprit(engine, request), reason(error)
        if culprit == _DOCUMENT and request.strict is None:
            said = f"{said}; {LET_PASS}"
        raise ConstraintError(f"{culprit}: {said}") from error


def _culprit(engine: TokenEngine, request: Request) -> str:
    """Only now, when something is wrong, is each tool compiled by itself."""
    for tool in request.allowed:
        ask = Ask([tool], "required", strict=request.strict, reasoning=request.reasoning)
        try:
            engine.grammar(request.format.grammar(ask), request.format.signposts)
        except ConstraintError:
            return f"tool {name_of(tool)!r}"
    return _DOCUMENT


def reason(error: Exception) -> str:
    """The first line of what llguidance says, without the place in our grammar."""
    return str(error).strip().split("\n")[0].split("JSON schema: ")[-1]
