"""What may be given for a prompt."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from pydantic import BaseModel

from tests.fake_engine import FakeEngine
from tests.toys_tools import loop
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.conversation import Prompt, conversation
from whiflash_adapters.tool_loop import generate_structured
from whiflash_engine.errors import ConfigError

HI = HumanMessage("hi")
TERSE = SystemMessage("be terse")


class Sum(BaseModel):
    """A sum."""

    total: int


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("hi", [HI]),
        (HI, [HI]),
        ([TERSE, HI], [TERSE, HI]),
        ([{"role": "system", "content": "be terse"}, ("user", "hi")], [TERSE, HI]),
        ([("ai", "yes?"), "hi"], [AIMessage("yes?"), HI]),
        (StringPromptValue(text="hi"), [HI]),
        (ChatPromptValue(messages=[TERSE, HI]), [TERSE, HI]),
    ],
)
def test_the_transcript_has_messages_whatever_was_given(
    prompt: Prompt, messages: list[object]
) -> None:
    done = loop("hello").run(prompt)
    assert [*done.messages[:-1]] == messages and done.answer == "hello"
    model = ChatWhiFlash(engine=FakeEngine('{"total": 5}'))
    assert generate_structured(model, Sum, prompt).total == 5


@pytest.mark.parametrize(
    "wrong",
    [None, 5, {"role": "user", "content": "hi"}, [5], [{"role": "user"}], [("nobody", "x")]],
)
def test_anything_else_is_named(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"^prompt=") as caught:
        loop("hello").stream(wrong)  # type: ignore[arg-type]  # before the first message
    assert caught.value.value is wrong
    model = ChatWhiFlash(engine=FakeEngine("{}"))
    with pytest.raises(ConfigError, match=r"^prompt="):
        generate_structured(model, Sum, wrong)  # type: ignore[arg-type]


def test_the_callers_list_is_left_alone() -> None:
    given = [HI]
    conversation(given).append(TERSE)
    assert given == [HI]
