"""Formats and patterns of strings: what the grammar lets through is valid."""

from __future__ import annotations

import calendar
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import llguidance
import llguidance.hf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, IPvAnyAddress, Json, SecretStr, TypeAdapter

from tests.fake_engine import byte_tokenizer
from whiflash_adapters.formats.schemas import json_rule
from whiflash_adapters.formats.strings import ecma, exact
from whiflash_engine.errors import ConfigError

KEY = "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"
TOKENIZER = byte_tokenizer()
LLGUIDANCE = llguidance.hf.from_tokenizer(TOKENIZER)


def matcher(schema: dict[str, Any]) -> llguidance.LLMatcher:
    found = llguidance.LLMatcher(LLGUIDANCE, f"start: {json_rule(schema, lenient=False)}")
    assert not found.is_error(), found.get_error()
    return found


def accepts(matcher: llguidance.LLMatcher, value: object) -> bool:
    text = json.dumps(value, ensure_ascii=False)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    matcher.reset()
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


DATES = matcher({"type": "string", "format": "date"})


@given(st.integers(0, 9999), st.integers(1, 12), st.integers(27, 31))
def test_a_date_is_a_day_of_the_calendar(year: int, month: int, day: int) -> None:
    # year 0 is a leap year in the proleptic calendar of ISO 8601
    there_is = day <= calendar.monthrange(year or 4, month)[1]
    assert accepts(DATES, f"{year:04}-{month:02}-{day:02}") == there_is


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("date-time", ["2024-02-29T23:59:59Z"], ["2023-02-29T00:00:00Z", "2024-01-01T22:59:60Z"]),
        ("time", ["23:59:59Z", "08:30:06.283185+00:20"], ["22:59:60Z", "24:00:00Z", "08:30"]),
        ("hostname", ["a", "www.ex-ample.com"], ["xn--X", "XN--aa---o47jg78q", "a..b", "-a", ""]),
        ("hostname", [".".join(["a" * 63] * 3)], [".".join(["a" * 62] * 5)]),
        ("json-pointer", ["", "/a/~0b/1"], ["a", "/~2"]),
        ("uri-reference", ["/a?b=c#d", "https://x.org/y", "#a"], ["\\\\x", "#fr\\ag", "a b"]),
        ("uri-template", ["http://x/{a}"], ["{a"]),
        ("idn-email", ["a@b.de"], ["a"]),
        ("uuid4", [KEY], [KEY.replace("-4", "-1")]),
        ("uuid1", [KEY.replace("-4", "-1")], [KEY]),
        ("path", ["anything at all"], []),
    ],
)  # fmt: skip
def test_formats(kind: str, good: list[str], bad: list[str]) -> None:
    found = matcher({"type": "string", "format": kind})
    assert [text for text in good if not accepts(found, text)] == []
    assert [text for text in bad if accepts(found, text)] == []


def test_a_pattern_and_a_format_both_hold() -> None:
    found = matcher({"type": "string", "format": "date", "pattern": "^20"})
    assert accepts(found, "2024-02-29")
    assert not accepts(found, "1924-02-29") and not accepts(found, "2023-02-29")


def test_white_space_is_that_of_ecma_script() -> None:
    space, ink = (matcher({"type": "string", "pattern": p}) for p in (r"^\s$", r"^\S$"))
    for letter, blank in {
        " ": True,
        "\ufeff": True,
        "\u2028": True,
        "\x85": False,
        "a": False,
    }.items():
        assert (accepts(space, letter), accepts(ink, letter)) == (blank, not blank)
    assert ecma(r"\\s[\d]") == r"\\s[\d]"


@pytest.mark.parametrize(
    ("schema", "long"),
    [
        ({}, "a" * 3000),
        ({"format": "path"}, "a" * 3000),
        ({"format": "json-pointer"}, "/a" * 1500),
        ({"contentEncoding": "base64"}, "aGVs" * 750),
    ],
)  # fmt: skip
def test_a_string_has_no_bound_but_its_schema_s_own(schema: dict[str, Any], long: str) -> None:
    assert accepts(matcher({"type": "string"} | schema), long)
    short = matcher({"type": "string", "maxLength": 2999, "minLength": 8} | schema)
    assert not accepts(short, long) and not accepts(short, long[:4])
    assert accepts(short, long[:2996])


def test_a_list_has_no_bound_but_its_schema_s_own() -> None:
    numbers: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
    assert accepts(matcher(numbers), list(range(300)))
    short = matcher(numbers | {"maxItems": 70})
    assert accepts(short, list(range(70))) and not accepts(short, list(range(71)))


def test_encoded_contents() -> None:
    base64 = matcher({"type": "string", "contentEncoding": "base64"})
    assert accepts(base64, "aGVsbG8=") and not accepts(base64, "a%") and not accepts(base64, "abc")
    for schema in ({"contentMediaType": "application/json"}, {"contentEncoding": "base32"}):
        with pytest.raises(ConfigError, match=next(iter(schema))):
            exact(schema, lenient=False)
        assert exact(schema, lenient=True) == schema
    assert exact({"contentMediaType": "text/html"}, lenient=False)


class Odd(BaseModel):
    """Fields whose formats the standard does not know."""

    file: Path
    key: UUID
    host: IPvAnyAddress
    secret: SecretStr
    raw: bytes


def test_a_pydantic_model_with_formats_of_its_own_can_be_asked_for() -> None:
    value = {
        "file": "/tmp/x",
        "key": KEY,
        "host": "127.0.0.1",
        "secret": "s",
        "raw": "abc",
    }
    assert accepts(matcher(Odd.model_json_schema()), value)
    assert Odd.model_validate(value).file == Path("/tmp/x")
    with pytest.raises(ConfigError, match="application/json"):
        matcher(TypeAdapter(Json[int]).json_schema())
