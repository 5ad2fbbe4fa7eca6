"""The demo's tools, loop and report, with a scripted engine."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from rich.console import Console

from tests.fake_engine import FakeEngine
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_agents.cli import main
from whiflash_agents.demo import DEMO_TOOLS, QUESTIONS, STEPS, _langchain_loop, _plain_loop, demo
from whiflash_agents.demo_tools import calculate, current_time, find_zone, search_docs
from whiflash_agents.documentation import Library
from whiflash_agents.report import Piece, Replay, coloured, printable, speed_lines
from whiflash_engine.events import Stats

EMPTY = Stats.of([], prompt_tokens=1, seconds=0.0, time_to_first_token=0.0)

ASK = write_call("calculate", {"expression": "6 * 7"})
LOOPS = pytest.mark.parametrize("loop", [_plain_loop, _langchain_loop])


def printed(*answers: str, **options: object) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    engine = FakeEngine(*answers)
    loop = options.pop("loop", None)
    code = demo(
        engine,
        ["What is 6 * 7?"],
        router="auto",
        max_tokens=100,
        console=console,
        own=bool(options.pop("own", False)),
        dtype=str(options.pop("dtype", "bfloat16")),
        loop=loop,  # type: ignore[arg-type]
    )
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


@LOOPS
def test_transcript_and_table(loop: object) -> None:
    # Each generation is asked for twice at the end: replayed without drafts.
    code, text = printed(ASK, "It is 42.", ASK, "It is 42.", loop=loop)
    assert code == 0
    for part in (
        "What is 6 * 7?",
        'calculate(expression="6 * 7")',
        "42",
        "It is 42.",
        "diffusion (DFlash)",
        "tool_call",
        "plain decoding of the same prompts",
        "2 of 2 generations have the very same tokens",
    ):
        assert part in text
    assert "near tie" not in text


def test_different_tokens_are_told() -> None:
    _, text = printed(ASK, "It is 42.", ASK, "It is 43.")
    text = " ".join(text.split())
    assert "1 of 2 generations" in text and "may be rounding" in text and "near tie" in text


def test_float32_is_no_excuse() -> None:
    _, text = printed(ASK, "It is 42.", ASK, "It is 43.", dtype="float32")
    text = " ".join(text.split())
    assert "routed and plain decoding differ" in text and "rounding" not in text


def test_no_tool_call_is_a_failure_unless_the_questions_were_the_users() -> None:
    assert printed("It is 42.")[0] == 1
    assert printed("It is 42.", own=True)[0] == 0
    assert printed(write_call("calculate", {"expression": "x.y"}), "Oh.")[0] == 1


@LOOPS
def test_a_model_that_only_calls_tools_is_stopped(loop: object) -> None:
    code, text = printed(ASK, loop=loop)
    assert code == 0 and text.count("Tool call") <= STEPS


def test_markup_and_escapes_in_model_text_are_only_text() -> None:
    console = Console(file=io.StringIO(), width=80, color_system="truecolor", force_terminal=True)
    console.print(coloured([Piece("ar", "[bold]x[/bold] [/nope] \x1b[2J"), Piece("plain", "y")]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "[bold]x[/bold] [/nope] \u241b[2J" in shown and "\x1b[2J" not in shown


NASTY = "a\x1b[2J\x9b2J\x7f\r\x07b"


def test_no_control_character_reaches_the_terminal() -> None:
    told = printable(f"one\n\ttwo{NASTY}")
    assert told == "one\n\ttwoa\u241b[2J\ufffd2J\u2421\u240d\u2407b"

    def loop(chat: ChatWhiFlash, question: str) -> Iterator[AIMessage | ToolMessage]:
        chat.invoke(question)
        call = {"name": f"f{NASTY}", "args": {f"k{NASTY}": NASTY}, "id": "1", "type": "tool_call"}
        yield AIMessage("", tool_calls=[call])
        yield ToolMessage(f"result {NASTY}", tool_call_id="1")

    _, text = printed(f"answer {NASTY}", loop=loop)
    assert text.count("a\u241b[2J\ufffd2J\u2421") >= 4
    assert not [c for c in text if unicodedata.category(c) == "Cc" and c != "\n"]


def test_speeds_are_those_of_the_stats() -> None:
    def stats(decode_tokens: int, decode_seconds: float) -> Stats:
        return replace(EMPTY, tokens=99, decode_tokens=decode_tokens, decode_seconds=decode_seconds)

    replays = [
        Replay(stats(30, 1.0), stats(10, 1.0), True),
        Replay(stats(30, 2.0), stats(10, 3.0), True),
        Replay(stats(0, 0.0), stats(0, 0.0), True),  # one round each
    ]
    assert speed_lines(replays, "float32")[0].startswith("20.0 tokens/s routed, 5.0 plain: 4.00x")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1234 * 56", "69104"),
        ("2 * (3 + 4)", "14"),
        ("7 / 2", "3.5"),
        ("8 / 2", "4"),
        ("0.1 + 0.2", "0.3"),
        ("-2 ** 2", "-4"),
        ("2^10", "1024"),
        ("1,234 + 1", "1235"),
        ("17 % 5", "2"),
        ("17% of 2350", "399.5"),
        ("6 \u00d7 7 =", "42"),
        ("2 ** 0.5", "1.41421356237"),
    ],
)
def test_calculator(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "(1).__class__",
        "__import__('os').system('true')",
        "9 ** 9 ** 9",
        "2 ** -99999999",
        "10 ** 1000 * 10 ** 1000",
        "1 / 0",
        "x + 1",
        "'a' * 3",
        "True + 1",
        "[1, 2]",
        "1 if 1 else 2",
        "(lambda: 1)()",
        "(-8) ** 0.5",
        "1e308 * 10",
        "1j * 2",
        "",
        "2 +",
        "(" * 150,
        "1 + " * 100 + "1",
    ],
)
def test_calculator_refuses(expression: str) -> None:
    assert calculate(expression).startswith("Error: ")


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("Asia/Tokyo", "Asia/Tokyo"),
        ("asia/tokyo", "Asia/Tokyo"),
        ("Tokyo", "Asia/Tokyo"),
        ("new york", "America/New_York"),
        ("Japan/Tokyo", "Asia/Tokyo"),
        ("UTC", "UTC"),
        ("", "UTC"),
    ],
)
def test_zones(name: str, zone: str) -> None:
    assert find_zone(name).key == zone


def test_the_clock() -> None:
    assert str(datetime.now(UTC).year) in current_time("UTC")
    assert "Europe/Berlin" in current_time("Berlim")
    assert current_time("Gondor").startswith("Error: unknown time zone 'Gondor'")


DOCS = (
    """# Kettle

Kettle boils water. It is released under the MIT license.

## Cache

- The cache lies in the [user's directory](https://example.org/x).
- Delete it with `kettle clear`.

"""
    + "A long paragraph about nothing in particular. " * 40
)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("license", "MIT license"),
        ("Which license does Kettle have?", "MIT license"),
        ("where is the cache directory", "user's directory"),
        ("clear caches", "kettle clear"),
    ],
)
def test_search(query: str, answer: str) -> None:
    found = Library({"README.md": DOCS}).search(query)
    assert found.startswith("README.md: ") and answer in found and len(found) <= 420


def test_the_license_is_found() -> None:
    assert "Apache License 2.0" in search_docs("which license")


def test_search_without_a_hit() -> None:
    assert Library({"README.md": DOCS}).search("zebra") == ""
    assert Library({}).search("zebra") == ""
    assert search_docs("xyzzyplugh").startswith("Error: ")


def test_tools_have_schemas() -> None:
    engine = FakeEngine("hello")
    ChatWhiFlash(engine=engine).bind_tools(DEMO_TOOLS).invoke("hi")
    block = engine.prompts[0].split("<tools>\n")[1].split("</tools>")[0]
    listed = [json.loads(line) for line in block.splitlines()]
    assert [tool["name"] for tool in listed] == ["current_time", "calculate", "search_docs"]
    assert listed[1]["parameters"] == {
        "type": "object",
        "properties": {
            "expression": {
                "type": "string",
                "description": "Numbers with + - * / and parentheses",
            }
        },
        "required": ["expression"],
    }
    for tool in listed:
        (argument,) = tool["parameters"]["properties"].values()
        assert tool["description"] and argument["type"] == "string" and argument["description"]


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_demo_with_the_real_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whiflash_agents.demo.QUESTIONS", QUESTIONS[:1])
    assert main(["demo", "--max-tokens", "80"]) == 0
    shown = capsys.readouterr().out
    assert 'calculate(expression="1234 * 56")' in shown and "69104" in shown
