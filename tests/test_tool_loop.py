"""The tool loop: what the model is told, what is tried again, when it ends."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from tests.fake_engine import FakeEngine
from tests.toys_text import write_call
from tests.toys_tools import ADD, Scripted, add, loop, result_of, unhurried
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.tool_loop import ToolLoop, Transcript, generate_structured
from whiflash_engine.errors import ConfigError


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


BROKEN = ADD.replace("3", "3,,")


def test_a_broken_call_is_told_to_the_model_and_is_no_answer() -> None:
    engine = FakeEngine(BROKEN, ADD, "It is 5.")
    done = ToolLoop(ChatWhiFlash(engine=engine, constrain="never"), [add]).run("2 + 3?")
    assert [m.type for m in done.messages] == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert done.finished and done.answer == "It is 5."
    asked, told = done.messages[1:3]
    assert isinstance(asked, AIMessage) and isinstance(told, ToolMessage)
    assert told.tool_call_id == asked.invalid_tool_calls[0]["id"] and told.name == "add"
    assert told.status == "error" and "3,," in told.text
    # the model reads the complaint under the call that it is about
    assert engine.prompts[1].count('"name": "add"') == engine.prompts[0].count('"name": "add"') + 1
    assert "3,," in engine.prompts[1]


def test_calls_beside_a_broken_one_are_answered_as_well() -> None:
    chat = ChatWhiFlash(engine=FakeEngine(f"{ADD}\n{BROKEN}", "ok"), constrain="never")
    results = ToolLoop(chat, [add]).run("hi").messages[2:-1]
    assert [isinstance(m, ToolMessage) and m.status for m in results] == ["success", "error"]
    assert results[0].text == "5"


def test_a_model_that_only_makes_broken_calls_has_not_finished() -> None:
    chat = ChatWhiFlash(engine=FakeEngine(BROKEN), constrain="never")
    done = ToolLoop(chat, [add], steps=2).run("hi")
    assert [m.type for m in done.messages] == ["human", "ai", "tool", "ai", "tool"]
    assert not done.finished


def test_a_broken_call_that_nobody_can_answer_ends_the_loop_unfinished() -> None:
    nameless = AIMessage(
        "", invalid_tool_calls=[{"name": None, "args": "{", "id": "x", "error": None}]
    )
    done = Transcript((HumanMessage("hi"), nameless))
    assert not done.finished and done.answer == ""
    said = ToolLoop(Scripted(messages=iter([nameless])), [add]).run("hi").messages
    assert said == (HumanMessage("hi"), nameless)


def test_what_was_the_worlds_fault_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    unhurried(monkeypatch)
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
    released = threading.Event()

    def slow(a: int) -> int:
        """Takes its time."""
        released.wait()
        return a

    result = result_of(slow, {"a": 1}, timeout=0.05)
    assert not released.is_set() and "slow took more than 0.05 seconds" in result.text
    (left,) = (thread for thread in threading.enumerate() if thread.name == "tool slow")
    assert left.daemon  # else the process could not end before it does
    released.set()
    left.join()


who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def test_tools_know_the_context_of_the_caller() -> None:
    def whose(a: int) -> str:
        """Says for whom it works."""
        return who.get()

    async def whose_later(a: int) -> str:
        """Says so as a coroutine."""
        return who.get()

    token = who.set("ann")
    try:
        assert result_of(whose, {"a": 1}).text == "ann"
        assert result_of(whose_later, {"a": 1}).text == "ann"
    finally:
        who.reset(token)


def test_callbacks_around_the_loop_hear_of_models_within_tools() -> None:
    inner = ChatWhiFlash(engine=FakeEngine("inside"))

    def ask(a: int) -> str:
        """Asks another model."""
        return inner.invoke("hi").text

    with get_usage_metadata_callback() as outside:
        inner.invoke("hi")
    with get_usage_metadata_callback() as around:
        done = loop(write_call("ask", {"a": 1}), "ok", tools=[ask]).run("hi")
    said = [m.usage_metadata for m in done.messages if isinstance(m, AIMessage)]
    own = sum(usage["output_tokens"] for usage in said if usage)
    heard = around.usage_metadata["fake"]["output_tokens"]
    assert heard == own + outside.usage_metadata["fake"]["output_tokens"]


@tool(return_direct=True)
def decide(a: int) -> str:
    """Decides."""
    if a < 0:
        raise ValueError("below zero")
    return f"it is {a}"


def test_a_result_that_is_returned_directly_is_the_answer() -> None:
    done = loop(write_call("decide", {"a": 3}), "never said", tools=[decide]).run("hi")
    assert [m.type for m in done.messages] == ["human", "ai", "tool"]
    assert done.finished and done.answer == "it is 3" and done.returned == done.messages[-1]


def test_calls_beside_it_are_answered_before_it_ends() -> None:
    both = f"{write_call('decide', {'a': 3})}\n{ADD}"
    done = loop(both, "never said", tools=[decide, add]).run("hi")
    assert [m.text for m in done.messages[2:]] == ["it is 3", "5"]
    assert done.finished and done.answer == "it is 3"


def test_an_error_is_not_returned_directly() -> None:
    said = write_call("decide", {"a": -1}), write_call("decide", {"a": 1})
    done = loop(*said, tools=[decide]).run("hi")
    assert [m.type for m in done.messages] == ["human", "ai", "tool", "ai", "tool"]
    assert "below zero" in done.messages[2].text and done.answer == "it is 1"


def test_the_steps_run_out() -> None:
    done = loop(ADD, steps=3).run("hi")
    assert not done.finished and sum(isinstance(m, AIMessage) for m in done.messages) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": "5"}, "steps='5'"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"steps": True}, "steps=True"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "5"}, "timeout='5'"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"timeout": float("inf")}, "timeout=inf"),
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": "x"}, "attempts='x'"),
        ({"attempts": 1.5}, "attempts=1.5"),
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
