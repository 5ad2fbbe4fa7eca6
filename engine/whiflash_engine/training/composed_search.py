"""Composed rows that search: a product's documentation, the web."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from whiflash_engine.training.composed_base import Loop, make_tool, tool_name_of
from whiflash_engine.training.composed_words import DOC_FACTS, PRODUCTS
from whiflash_engine.training.gold import Call
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import Json


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


def web_search(
    rng: random.Random, question: str, tools: Sequence[Json], ref: JsonValue
) -> Loop | None:
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
            f'1. {known} - the answer to "{plain}".\n2. Related: history and background.',
            json.dumps([{"title": plain.capitalize(), "content": f"{known}."}], ensure_ascii=False),
            f"{plain.capitalize()}? {known}. See also the list of related articles.",
        ]
    )
    answer = rng.choice(
        [f"{known}.", f"The answer is {known}.", f"According to the search: {known}."]
    )
    return Loop(question, tuple(tools), Call(tool_name_of(tool), {"query": plain}), result, answer)
