"""The tool loop: what the model is told, what is tried again, when it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from tests.fake_engine import FakeEngine
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.tool_loop import ToolLoop, generate_structured
from whiflash_engine.errors import ConfigError


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


ADD = write_call("add", {"a": 2, "b": 3})


def loop(*texts: str, tools: Any = (add,), **options: Any) -> ToolLoop:
    return ToolLoop(ChatWhiFlash(engine=FakeEngine(*texts)), tools, **options)


def test_a_question_a_call_an_answer() -> None:
    done = loop(ADD, "It is 5.").run("2 + 3?")
    assert [m.type for m in done.messages] == ["human", "ai", "tool", "ai"]
    assert done.finished and done.answer == "It is 5."
    assert [call["args"] for call in done.calls] == [{"a": 2, "b": 3}]
    assert done.messages[2].text == "5"


def test_two_calls_in_one_answer_are_both_answered() -> None:
    done = loop(f"{ADD}\n{ADD}", "5 and 5.").run([HumanMessage("twice?")])
    results = [m for m in done.messages if isinstance(m, ToolMessage)]
    ids = [call["id"] for call in done.calls]
    assert [m.tool_call_id for m in results] == ids and len(set(ids)) == 2


def test_failures_are_told_to_the_model() -> None:
    def broken(a: int) -> int:
        """Fails."""
        raise RuntimeError("no such luck")

    ask = write_call("broken", {"a": 1})
    messages = list(loop(ask, write_call("launch", {}), "I give up.", tools=[broken]).stream("hi"))
    assert [m.type for m in messages] == ["ai", "tool", "ai", "tool", "ai"]
    assert "no such luck" in messages[1].text
    assert "'launch'" in messages[3].text and "broken" in messages[3].text
    assert isinstance(messages[1], ToolMessage) and messages[1].status == "error"


def test_wrong_arguments_are_told_to_the_model() -> None:
    done = loop(write_call("add", {"a": 1}), "Oh.").run("hi")
    result = done.messages[2]
    assert isinstance(result, ToolMessage) and result.status == "error" and "b" in result.text


def test_what_was_the_worlds_fault_is_tried_again() -> None:
    tries = 0

    @tool
    def flaky(a: int) -> int:
        """Works the third time."""
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionError("gone")
        return a

    ask = write_call("flaky", {"a": 7})
    assert loop(ask, "ok", tools=[flaky]).run("hi").messages[2].text == "7"
    assert tries == 3
    tries = 0
    assert "gone" in loop(ask, "ok", tools=[flaky], attempts=1).run("hi").messages[2].text
    assert tries == 1


def test_a_tool_that_takes_too_long_is_left_behind() -> None:
    def slow(a: int) -> int:
        """Takes its time."""
        time.sleep(1.0)
        return a

    start = time.perf_counter()
    done = loop(write_call("slow", {"a": 1}), "ok", tools=[slow], timeout=0.05).run("hi")
    assert time.perf_counter() - start < 0.9
    assert "slow took more than 0.05 seconds" in done.messages[2].text


def test_a_tool_that_never_returns_does_not_keep_the_process_from_ending() -> None:
    said = write_call("stuck", {"a": 1})
    program = f"""
import threading
from tests.fake_engine import FakeEngine
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.tool_loop import ToolLoop

def stuck(a: int) -> int:
    'Never returns.'
    threading.Event().wait()
    return a

chat = ChatWhiFlash(engine=FakeEngine({said!r}, "ok"))
print(ToolLoop(chat, [stuck], timeout=0.05).run("hi").answer)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.strip() == "ok"


def test_the_steps_run_out() -> None:
    done = loop(ADD, steps=3).run("hi")
    assert not done.finished and sum(isinstance(m, AIMessage) for m in done.messages) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"attempts": 0}, "attempts=0"),
        ({"tools": [add, add]}, "names must differ"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loop("hi", **options)


class Sum(BaseModel):
    """A sum."""

    total: int


def test_a_pydantic_class_is_filled_in() -> None:
    model = ChatWhiFlash(engine=FakeEngine('{"total": 5}'))
    assert generate_structured(model, Sum, "2 + 3?") == Sum(total=5)
    assert generate_structured(model, Sum, [HumanMessage("2 + 3?")]).total == 5
