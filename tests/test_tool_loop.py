"""The tool loop: what the model is told, what is tried again, when it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, Tool, ToolException, tool
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


def result_of(asked: Any, arguments: dict[str, Any], **options: Any) -> ToolMessage:
    """What the model reads when it calls this one tool."""
    name = asked.name if hasattr(asked, "name") else asked.__name__
    done = loop(write_call(name, arguments), "ok", tools=[asked], **options).run("hi")
    result = done.messages[2]
    assert isinstance(result, ToolMessage)
    assert result.tool_call_id == done.calls[0]["id"] and result.name == name
    return result


def test_coroutines_are_tools() -> None:
    async def double(a: int) -> int:
        """Twice as much."""
        return 2 * a

    result = result_of(double, {"a": 4})
    assert (result.text, result.status) == ("8", "success")
    single = Tool("double", None, "Twice as much.", coroutine=lambda a: double(int(a)))
    assert result_of(single, {"__arg1": "4"}).text == "8"


def test_coroutines_are_tried_again_and_left_behind_as_well() -> None:
    tries = 0

    async def flaky(a: int) -> int:
        """Works the second time."""
        nonlocal tries
        tries += 1
        if tries < 2:
            raise ConnectionError("gone")
        return a

    async def stuck(a: int) -> None:
        """Never returns."""
        threading.Event().wait()

    assert result_of(flaky, {"a": 7}).text == "7" and tries == 2
    result = result_of(stuck, {"a": 7}, timeout=0.05)
    assert "stuck took more than 0.05 seconds" in result.text and result.status == "error"


def test_a_tool_may_ask_for_the_id_of_its_call() -> None:
    def whose(a: int, call: Annotated[str, InjectedToolCallId]) -> str:
        """Says who called."""
        return f"{a} for {call}"

    result = result_of(tool(whose), {"a": 1})
    assert result.text == f"1 for {result.tool_call_id}"


def test_what_is_no_text_is_told_as_json() -> None:
    def weather(city: str) -> dict[str, object]:
        """The weather of a city."""
        return {"city": city, "sunny": True, "wind": None}

    told = result_of(weather, {"city": "Köln"}).text
    assert json.loads(told) == {"city": "Köln", "sunny": True, "wind": None} and "Köln" in told


def test_artifacts_are_kept() -> None:
    @tool(response_format="content_and_artifact")
    def draw(a: int) -> tuple[str, list[int]]:
        """Draws."""
        return f"{a} points", [a] * a

    result = result_of(draw, {"a": 3})
    assert result.text == "3 points" and result.artifact == [3, 3, 3]


def test_an_error_that_the_tool_words_itself_is_still_one() -> None:
    def refuse(a: int) -> int:
        """Refuses."""
        raise ToolException("not today")

    asked = tool(refuse)
    asked.handle_tool_error = True
    result = result_of(asked, {"a": 1})
    assert (result.text, result.status) == ("not today", "error")


def test_a_message_of_the_tools_own_answers_the_call_that_was_made() -> None:
    def answer(a: int) -> ToolMessage:
        """Answers in a message."""
        return ToolMessage(f"{a}!", tool_call_id="another", artifact=a)

    result = result_of(answer, {"a": 5})
    assert (result.text, result.artifact) == ("5!", 5)


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
