"""Spans do not depend on where tokens end, and roll back exactly."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whiflash_engine.config import Span
from whiflash_engine.router.spans import SpanDetector

# Marked texts: ^j, ^c, ^r and ^t say where json, tool_call, reasoning and text begin. An opening
# bracket is believed until the byte after it.
MARKS: dict[str, Span] = {"j": "json", "c": "tool_call", "r": "reasoning", "t": "text"}
CASES = {
    "tool call": 'Sure.\n<tool_call>^c\n{"name": "a", "x": "<think>"}\n</tool_call>^t\nDone.',
    "two tool calls": "<tool_call>^c{}</tool_call>^t <tool_call>^c[]</tool_call>^t",
    "reasoning": "<think>^rLet me see {x} <tool_call> ```json\n</think>^tIt is 4.",
    "message of json": '{^j"a": [1, {"b": "}\\"]"}], "c": null}^t\nThat is all.',
    "json after reasoning": '<think>^rhm</think>^t\n\n{^j"a": true}^t',
    "nested arrays": "[^j[1, 2.5e-3], [-4]]^t [1]",
    "indented": 'As follows:\n  {^j"a": 1}^t',
    "braces in prose": "Let f{x} = {y}, [z] too.\n{^jx^t} is no JSON\n[^js^tee below] nor [this]",
    "a footnote": "[^j1]^t Smith",
    "broken string": '{^j"a\n^tb"}',
    "mismatch": '{^j"a": 1]^t\nafter',
    "not json, then json": '{^j\n{"a": 1}^t',
    "fence": 'Here:\n```json^j\n{"a": 1}\n{"b": 2}\n```^t\nand text {"a": 1}.',
    "other fence": "```python\nd = {'a': 1}\n```\n",
    "fence inside a line": "use ```json to open",
    "escapes": r'{^j"a\\": "\"}", "b": "\u00e9é"}^t' + " x",
    "half markers": "a < b <tool <tool_cal <think\n``json <tool_call>^c</tool_call </tool_call>^t",
}  # fmt: skip


def _read(marked: str) -> tuple[bytes, list[Span]]:
    """The text, and the span at every byte offset 0..len."""
    first, *parts = marked.split("^")
    data, span = first.encode(), MARKS["t"]
    spans = [span] * len(data)
    for part in parts:
        span, piece = MARKS[part[0]], part[1:].encode()
        data += piece
        spans += [span] * len(piece)
    return data, [*spans, span]


TEXTS = {name: _read(marked) for name, marked in CASES.items()}


def _detector(pieces: list[bytes], initial: Span = "text") -> SpanDetector:
    """Token i stands for pieces[i]."""
    return SpanDetector(pieces.__getitem__, initial)


def _split(data: bytes, cuts: set[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("name", CASES)
def test_every_byte_lies_in_its_span(name: str) -> None:
    data, spans = TEXTS[name]
    detector = _detector(_split(data, set(range(len(data)))))
    got = [detector.span]
    for token in range(len(data)):
        detector.advance([token])
        got.append(detector.span)
    wrong = next(
        (i for i, pair in enumerate(zip(got, spans, strict=True)) if len({*pair}) > 1), None
    )
    assert wrong is None, f"{data[:wrong]!r} then {got[wrong or 0]}"


@given(
    name=st.sampled_from(sorted(CASES)), cuts=st.sets(st.integers(1, 80)), batch=st.integers(1, 4)
)
@settings(max_examples=300)
def test_any_split_into_tokens_gives_the_same_spans(name: str, cuts: set[int], batch: int) -> None:
    data, spans = TEXTS[name]
    pieces = _split(data, cuts)
    detector = _detector(pieces)
    for start in range(0, len(pieces), batch):
        detector.advance(range(start, min(start + batch, len(pieces))))
        assert detector.span == spans[len(b"".join(pieces[: start + batch]))]


@pytest.mark.parametrize("name", CASES)
def test_one_token_may_hold_everything(name: str) -> None:
    data, spans = TEXTS[name]
    detector = _detector([data, b""])
    detector.advance([0, 1, 1])
    assert detector.span == spans[-1]


@given(data=st.data(), name=st.sampled_from(sorted(CASES)), cuts=st.sets(st.integers(1, 80)))
@settings(max_examples=200)
def test_rollback_is_exact(data: st.DataObject, name: str, cuts: set[int]) -> None:
    text, spans = TEXTS[name]
    pieces = _split(text, cuts)
    detector = _detector(pieces)
    while detector.length < len(pieces):
        ahead = data.draw(st.integers(1, len(pieces) - detector.length))
        detector.advance(range(detector.length, detector.length + ahead))
        detector.rollback(data.draw(st.integers(0, ahead - 1)))
        assert detector.span == spans[len(b"".join(pieces[: detector.length]))]
    detector.rollback(len(pieces))
    assert detector.span == "text" and detector.length == 0
    with pytest.raises(ValueError, match="roll back"):
        detector.rollback(1)


@given(text=st.text(alphabet='{}[]",:\\\n`<>/ 1atx', max_size=60))
@settings(max_examples=300)
def test_what_json_accepts_is_json_to_its_last_byte(text: str) -> None:
    """Any JSON text that opens a line, and nothing breaks the detector."""
    document = json.dumps({"k": [text, {"n": 1.5e-7, "b": [True, None]}], text: []}, indent=1)
    data = f"Here:\n{document}\nend".encode()
    start, stop = len(b"Here:\n"), len(b"Here:\n") + len(document.encode())
    detector = _detector([data[i : i + 1] for i in range(len(data))])
    got: list[Span] = []
    for token in range(len(data)):
        detector.advance([token])
        got.append(detector.span)
    assert set(got[:start]) == {"text"} and set(got[start : stop - 1]) == {"json"}
    assert set(got[stop - 1 :]) == {"text"}
    _detector([text.encode()]).advance([0])


@pytest.mark.parametrize(
    ("initial", "text", "after"),
    [
        ("tool_call", b'{"a": 1}', "tool_call"),
        ("tool_call", b"{}\n</tool_call>", "text"),
        ("reasoning", b'hm\n{"a": 1}\n', "reasoning"),
        ("reasoning", b"hm</think>", "text"),
        ("json", b'{"a": [1]}', "json"),
        ("json", b"17", "json"),
    ],
)
def test_a_span_that_is_open_from_the_start(initial: Span, text: bytes, after: Span) -> None:
    detector = _detector([text], initial)
    assert detector.span == initial
    detector.advance([0])
    assert detector.span == after
    detector.rollback(1)
    assert detector.span == initial


def test_for_how_long_a_span_has_lasted() -> None:
    pieces = [b"a", b"<think>", b"b", b"c", b"</think>", *[b"d"] * 80]
    detector = _detector(pieces)
    found = [detector.since]
    for i in range(len(pieces)):
        detector.advance([i])
        found.append(detector.since)
    # the text is one token old before the marker, and begins anew behind it
    assert found[:7] == [0, 1, 0, 1, 2, 0, 1] and found[-1] == 80
    detector.rollback(82)
    assert detector.since == 1 and detector.span == "reasoning"
