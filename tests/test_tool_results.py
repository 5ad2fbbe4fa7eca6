"""What the model is told of a call: results, their form, and what it cannot read."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Annotated

import pytest
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, Tool, ToolException, tool

from tests.fake_engine import FakeEngine
from tests.toys_text import write_call
from tests.toys_tools import Scripted, loop, result_of, unhurried
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.tool_loop import ToolLoop

Blocks = list[dict[str, object]]
IMAGE: dict[str, object] = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}


def test_coroutines_are_tools() -> None:
    async def double(a: int) -> int:
        """Twice as much."""
        return 2 * a

    result = result_of(double, {"a": 4})
    assert (result.text, result.status) == ("8", "success")
    single = Tool("double", None, "Twice as much.", coroutine=lambda a: double(int(a)))
    assert result_of(single, {"__arg1": "4"}).text == "8"


def test_coroutines_are_tried_again_and_left_behind_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unhurried(monkeypatch)
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


def test_an_error_without_words_is_told_by_its_kind() -> None:
    def fails(a: int) -> int:
        """Fails."""
        raise AssertionError

    assert result_of(fails, {"a": 1}).text == "Error: AssertionError"


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (IMAGE, "an image"),
        ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, "an image"),
        ({"type": "file", "base64": "AAAA", "mime_type": "application/pdf"}, "file data"),
    ],
)
def test_what_the_model_cannot_read_is_an_error_that_it_can(
    block: dict[str, object], what: str
) -> None:
    def draw(a: int) -> Blocks:
        """Draws."""
        return [block]

    engine = FakeEngine(write_call("draw", {"a": 1}), "A pity.")
    done = ToolLoop(ChatWhiFlash(engine=engine), [draw]).run("hi")
    result = done.messages[2]
    assert isinstance(result, ToolMessage) and result.status == "error"
    assert result.text == f"Error: draw returned {what}, which this model cannot read"
    assert result.tool_call_id == done.calls[0]["id"]
    assert done.finished and result.text in engine.prompts[1]


def test_texts_beside_an_image_stay_and_so_does_the_artifact() -> None:
    @tool(response_format="content_and_artifact")
    def draw(a: int) -> tuple[Blocks, str]:
        """Draws."""
        return [{"type": "text", "text": "a red square"}, IMAGE, IMAGE], "square.png"

    engine = FakeEngine(write_call("draw", {"a": 1}), "ok")
    result = ToolLoop(ChatWhiFlash(engine=engine), [draw]).run("hi").messages[2]
    assert isinstance(result, ToolMessage) and result.artifact == "square.png"
    told = "Error: draw returned an image, which this model cannot read\na red square"
    assert told in engine.prompts[1]


def test_an_image_that_is_returned_directly_is_for_no_model_to_read() -> None:
    @tool(return_direct=True)
    def draw(a: int) -> Blocks:
        """Draws."""
        return [IMAGE]

    done = loop(write_call("draw", {"a": 1}), tools=[draw]).run("hi")
    assert done.finished and done.returned and done.returned.content == [IMAGE]
    told = done.messages[-1]
    assert told.text == "Error: draw returned an image, which this model cannot read"
    chat = ChatWhiFlash(engine=FakeEngine("I see."))
    assert chat.invoke([*done.messages, HumanMessage("and?")]).text == "I see."


def test_an_error_of_such_a_tool_is_for_the_model() -> None:
    @tool(return_direct=True)
    def draw(a: int) -> ToolMessage:
        """Draws."""
        return ToolMessage([IMAGE], tool_call_id="", status="error")

    done = loop(write_call("draw", {"a": 1}), "Oh.", tools=[draw]).run("hi")
    assert done.answer == "Oh." and "an image" in done.messages[2].text


def test_what_is_no_json_is_told_to_the_model() -> None:
    def table(a: int) -> Blocks:
        """A table."""
        return [{"type": "json", "json": {(1, 2): 3}}]

    result = result_of(table, {"a": 1})
    assert result.text == "Error: table returned json data, which this model cannot read"


def test_a_coroutine_that_cancels_itself_has_failed() -> None:
    async def give_up(a: int) -> int:
        """Gives up."""
        raise asyncio.CancelledError

    result = result_of(give_up, {"a": 1})
    assert (result.text, result.status) == ("Error: CancelledError", "error")


def test_models_that_read_images_are_given_them() -> None:
    def draw(a: int) -> Blocks:
        """Draws."""
        return [IMAGE]

    called = AIMessage("", tool_calls=[{"name": "draw", "args": {"a": 1}, "id": "x"}])
    profiles: list[ModelProfile | None] = [
        None,
        {"max_input_tokens": 5},
        {"image_inputs": False, "image_tool_message": True},
    ]
    for profile in profiles:
        model = Scripted(messages=iter([called, AIMessage("ok")]), profile=profile)
        assert ToolLoop(model, [draw]).run("hi").messages[2].content == [IMAGE]
