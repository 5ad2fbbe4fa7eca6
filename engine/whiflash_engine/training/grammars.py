"""Constraints for prompt rows: replies are decoded in training as they will be in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whiflash_engine.constraint import Constraint, GrammarFactory
from whiflash_engine.errors import ConstraintError
from whiflash_engine.grammar_tokenizer import native_tokenizer
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.rows import Json

MakeConstraint = Callable[[], Constraint]

ToolGrammar = Callable[[Sequence[Json]], str]
"""Tools on offer -> Lark grammar of a reply that may call them. The format of calls belongs to
whoever renders prompts, not to the engine."""


class PromptGrammars:
    """Compiles each grammar once to see whether it can be; makes fresh constraints later."""

    def __init__(
        self, tokenizer: HubTokenizer, vocab_size: int, tool_grammar: ToolGrammar | None = None
    ) -> None:
        self._factory = GrammarFactory(
            native_tokenizer(tokenizer.inner), vocab_size, [tokenizer.stop_id]
        )
        self._tool_grammar = tool_grammar

    def of(self, schema: Json | None, tools: Sequence[Json] = ()) -> MakeConstraint | None:
        """None where there is neither schema nor tool, or where it cannot be compiled."""
        make: MakeConstraint
        if tools and self._tool_grammar is not None:
            lark = self._tool_grammar(tools)
            make = lambda: self._factory.lark(lark)  # noqa: E731
        elif schema is not None:
            make = lambda: self._factory.json_schema(schema)  # noqa: E731
        else:
            return None
        try:
            make()
        except ConstraintError:
            return None
        return make
