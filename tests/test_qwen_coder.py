"""Qwen-Coder's values without quotes: what is empty, what is null, and where one ends."""

from __future__ import annotations

import pytest

from tests.test_formats import accepts, calls, joined, tool
from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.qwen_coder import QWEN_CODER

NULL = {"type": "null"}
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
WORD = {"enum": ["up", "down"]}
FIND = tool("find", {"q": TEXT, "n": NUMBER})


def one(schema: object) -> dict[str, object]:
    return {"v": schema}


def written(*lines: str) -> str:
    """A call of `find` whose arguments are these lines."""
    return "\n".join(["<tool_call>", "<function=find>", *lines, "</function>", "</tool_call>"])


def value(text: str) -> list[str]:
    return ["<parameter=v>", text, "</parameter>"]


def arguments(text: str, properties: dict[str, object]) -> dict[str, object]:
    """As they are read, in one piece or one character after another."""
    tools, told = [tool("find", properties)], []
    for pieces in ([text], list(text)):
        reader = QWEN_CODER.parser(tools)
        events = [event for piece in pieces for event in reader.feed(piece)]
        told.append(calls(joined(events + reader.finish())))
    assert told[0] == told[1]
    ((_, found),) = told[0]
    return dict(found)


@pytest.mark.parametrize("empty", [[], [""]])
def test_an_empty_value_ends_where_it_begins(empty: list[str]) -> None:
    text = written(
        "<parameter=q>", *empty, "</parameter>", "<parameter=n>", "3", "</parameter>"
    )  # fmt: skip
    assert arguments(text, {"q": TEXT, "n": NUMBER}) == {"q": "", "n": 3}
    assert accepts(QWEN_CODER, Ask([FIND]), text)


def test_an_empty_value_behind_a_tag_without_a_line_break() -> None:
    text = written("<parameter=q></parameter>", "<parameter=n>3", "</parameter>")
    assert arguments(text, {"q": TEXT, "n": NUMBER}) == {"q": "", "n": 3}


def test_what_the_parser_takes_for_the_end_is_the_end_for_the_grammar() -> None:
    """A value too short for its schema cannot go on behind its closing tag."""
    ask = Ask([tool("find", one({"type": "string", "minLength": 3}))])
    assert accepts(QWEN_CODER, ask, written(*value("abc")))
    assert not accepts(QWEN_CODER, ask, written("<parameter=v>", "</parameter>"))
    for short in ("", "ab"):
        assert not accepts(QWEN_CODER, ask, written(*value(short)))
        assert not accepts(QWEN_CODER, ask, written(*value(f"{short}\n</parameter>\nabc")))
    assert not accepts(QWEN_CODER, ask, written(*value("</parameter>\nabc")))


@pytest.mark.parametrize(
    "kind", [TEXT, TEXT | {"minLength": 6}, NUMBER, WORD, {"type": "array", "items": TEXT}]
)
def test_null_is_null_where_the_schema_has_it(kind: dict[str, object]) -> None:
    text = written(*value("null"))
    for ways in ([kind, NULL], [NULL, kind]):
        properties = one({"anyOf": ways})
        assert accepts(QWEN_CODER, Ask([tool("find", properties)], strict=True), text)
        assert arguments(text, properties) == {"v": None}


def test_null_is_null_behind_a_reference() -> None:
    schema = {
        "$defs": {"kind": {"type": "string", "minLength": 6}},
        "properties": one({"anyOf": [{"$ref": "#/$defs/kind"}, NULL]}),
        "required": ["v"],
    }
    tools = [{"type": "function", "function": {"name": "find", "parameters": schema}}]
    assert accepts(QWEN_CODER, Ask(tools), written(*value("null")))
    assert not accepts(QWEN_CODER, Ask(tools), written(*value("short")))


def test_other_values_are_what_they_were_beside_null() -> None:
    for kind, text, meant in (
        (TEXT, "3", "3"), (NUMBER, "3", 3), (WORD, "up", "up"), (TEXT, "nullify", "nullify"),
    ):  # fmt: skip
        schema = one({"anyOf": [kind, NULL]})
        assert arguments(written(*value(text)), schema) == {"v": meant}
        assert accepts(QWEN_CODER, Ask([tool("find", schema)]), written(*value(text)))


def test_null_is_a_word_where_the_schema_has_strings_only() -> None:
    assert arguments(written(*value("null")), one(TEXT)) == {"v": "null"}
    assert not accepts(QWEN_CODER, Ask([tool("find", one(NUMBER))]), written(*value("null")))
