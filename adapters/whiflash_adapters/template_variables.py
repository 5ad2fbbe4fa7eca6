"""The variables that a chat template takes from outside."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser


def variables_of(template: object) -> frozenset[str]:
    """Of a tokenizer's `chat_template`: one, several by name, or none. TemplateError for a text
    that is no template."""
    texts = template.values() if isinstance(template, Mapping) else [template or ""]
    jinja = Environment(extensions=[loopcontrols, _Generation])
    return frozenset().union(*(find_undeclared_variables(jinja.parse(str(t))) for t in texts))


class _Generation(Extension):
    """The one tag that transformers adds to jinja's: what stands in it is an assistant's turn."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
