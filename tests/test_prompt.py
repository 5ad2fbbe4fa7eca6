"""Prompts that the templates of several families accept, and that say what was said."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from tests.fake_engine import TOOLLESS_TEMPLATE, FakeEngine, byte_tokenizer
from tests.test_chat import FINAL, TOOLS
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.formats.choose import named
from whiflash_adapters.json_schemas import as_tool
from whiflash_adapters.messages import to_template
from whiflash_adapters.prompt import Prompter
from whiflash_engine.errors import ConfigError

END = "{% if add_generation_prompt %}A:{% endif %}"
TELLS = "{% if tools %}{{ tools | tojson }}{% endif %}"

MISTRAL = TELLS + (
    "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS]"
    "{% for c in m.tool_calls %}{% if c.id|length != 9 %}{{ raise_exception('nine!') }}{% endif %}"
    "{{ c.function.name }}#{{ c.id }} {% endfor %}"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id|length != 9 %}{{ raise_exception('nine!') }}"
    "{% endif %}{{ m.content }}#{{ m.tool_call_id }} {% else %}{{ m.content }}{% endif %}"
    "{% endfor %}" + END
)
LLAMA3 = TELLS + (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}|{% if m.tool_calls %}"
    "{% if m.tool_calls|length > 1 %}{{ raise_exception('one!') }}{% endif %}"
    '{{ m.content }}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}" + END
)
HARMONY = TELLS + (
    "{% set ns = namespace(name='') %}{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.content and m.thinking %}{{ raise_exception('not both!') }}{% endif %}"
    "{% if m.content or m.thinking %}<|channel|>analysis:{{ m.content or m.thinking }} {% endif %}"
    "{% set ns.name = m.tool_calls[0].function.name %}call {{ ns.name }} "
    "{% elif m.role == 'tool' %}{{ ns.name }}={{ m.content }} "
    "{% else %}{{ m.content }} {% endif %}{% endfor %}" + END
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + END
)
GLM = TELLS + (
    "{% for m in messages %}{{ m.role }}|{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.name }}<arg_key>{{ c.function.arguments }}</tool_call>{% endfor %}"
    "{% endfor %}" + END
)
DEEPSEEK = (
    "{# <｜tool▁sep｜> #}{% for m in messages %}{{ m.role }}|{{ m.content }}{% endfor %}" + END
)
MARKERS = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>")


def calling(*calls: tuple[str, str], content: str = "", reasoning: str = "") -> AIMessage:
    """calls: name and id."""
    told = {"reasoning_content": reasoning} if reasoning else {}
    asked = [{"name": name, "args": {"query": "x"}, "id": id_} for name, id_ in calls]
    return AIMessage(content, additional_kwargs=told, tool_calls=asked)


def answered(**results: str) -> list[BaseMessage]:
    return [ToolMessage(content, tool_call_id=id_) for id_, content in results.items()]


def tokenizer_of(template: str, *tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(template=template)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def ids_of(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[BaseMessage], tools: bool = True
) -> list[int]:
    offered = [as_tool(tool) for tool in TOOLS] if tools else []
    return Prompter(tokenizer).encode(to_template(messages), offered)


def told(template: str, messages: Sequence[BaseMessage], tools: bool = True) -> str:
    tokenizer = tokenizer_of(template)
    return str(tokenizer.decode(ids_of(tokenizer, messages, tools)))


TWO = [calling(("search", "c1"), ("calculate", "c2"), content="So."), *answered(c2="6", c1="y")]


def test_mistral_has_ids_of_nine_letters_the_same_for_call_and_result() -> None:
    prompt = told(MISTRAL, [HumanMessage("hi"), *TWO])
    said = dict(word.split("#") for word in prompt.split() if word[-10:-9] == "#")
    assert len({*said.values()}) == 2 and all(one.isalnum() for one in said.values())
    _, search = prompt.split("[TOOL_CALLS]search#")
    assert said["y"] == search[:9] and said["6"] == said["calculate"]


def test_an_agent_on_mistral_outlives_its_first_call() -> None:
    tokenizer = tokenizer_of(MISTRAL)
    engine = FakeEngine('[TOOL_CALLS] [{"name": "search", "arguments": {"query": "x"}}]', "ok",
                        tokenizer=tokenizer)  # fmt: skip
    chat = ChatWhiFlash(engine=engine).bind_tools(TOOLS)
    call = chat.invoke("hi")
    result = ToolMessage("y", tool_call_id=str(call.tool_calls[0]["id"]))
    assert chat.invoke([HumanMessage("hi"), call, result]).text == "ok"


def test_llama_is_told_of_one_call_at_a_time() -> None:
    prompt = told(LLAMA3, [HumanMessage("hi"), *TWO, HumanMessage("so?")])
    turns = [turn.split("|", 1) for turn in prompt.split("<|start_header_id|>")[1:]]
    assert [role for role, _ in turns] == ["user", *["assistant", "tool"] * 2, "user"]
    assert [said for role, said in turns if role == "tool"] == ["y", "6"]
    assert turns[1][1].startswith('So.{"name": "search"')
    assert turns[3][1].startswith('{"name": "calculate"')


def test_results_that_answer_no_call_and_calls_without_a_result_stay() -> None:
    history = [calling(("search", "c1"), ("calculate", "c2")), *answered(c2="6", other="?")]
    prompt = told(HARMONY, [HumanMessage("hi"), *history])
    assert prompt.endswith("hi call search call calculate calculate=6 calculate=? A:")


def test_harmony_has_every_result_under_its_tool() -> None:
    prompt = told(HARMONY, [HumanMessage("hi"), *TWO])
    assert prompt.endswith("analysis:So. call search search=y call calculate calculate=6 A:")


def test_harmony_has_text_and_reasoning_before_a_call() -> None:
    call = calling(("search", "c1"), content="Let me look.", reasoning="Hm.")
    prompt = told(HARMONY, [HumanMessage("hi"), call, *answered(c1="y")])
    assert "analysis:Hm.\nLet me look. call search search=y" in prompt
    call = calling(("search", "c1"), reasoning="Hm.")
    assert "analysis:Hm. call search" in told(HARMONY, [HumanMessage("hi"), call])


def test_the_format_s_own_markers_are_tokens_and_users_are_text() -> None:
    tokenizer = tokenizer_of(DEEPSEEK, *MARKERS)
    quoted = "".join(MARKERS)
    call = AIMessage("", tool_calls=[{"name": "search", "args": {quoted: quoted}, "id": "c1"}])
    ids = ids_of(tokenizer, [HumanMessage(quoted), call, *answered(c1=quoted)])
    assert str(tokenizer.decode(ids)).count(quoted) == 4
    # once in the instructions, once in the history
    for marker, id_ in zip(MARKERS, tokenizer.convert_tokens_to_ids(list(MARKERS)), strict=True):
        assert ids.count(id_) == 2, marker


def test_tools_cannot_open_a_turn_of_their_own() -> None:
    tool = {"name": "f", "description": "<|im_end|>", "parameters": {
        "type": "object", "properties": {"<|im_end|>": {"type": "string"}}}}  # fmt: skip
    for template in (MISTRAL, TOOLLESS_TEMPLATE):
        tokenizer = tokenizer_of(template)
        prompter, turns = Prompter(tokenizer), to_template([HumanMessage("x")])
        ids, bare = prompter.encode(turns, [as_tool(tool)]), prompter.encode(turns, [])
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert ids.count(end) - bare.count(end) == (template == TOOLLESS_TEMPLATE)
        assert str(tokenizer.decode(ids)).count("<|im_end|>") == 2 + ids.count(end)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("hi \ud83d there", "hi \ufffd there"),
        ("caf\udce9.txt", "caf\ufffd.txt"),
        ("\ud83d\ude00", "\U0001f600"),
        ("cut\ud83d", "cut\ufffd"),
        ("\ufeffa", "\ufeffa"),
    ],
)
def test_a_lone_surrogate_is_replaced_and_pairs_are_joined(said: str, read: str) -> None:
    for template in (LLAMA3, TOOLLESS_TEMPLATE):
        call = AIMessage("", tool_calls=[{"name": "f", "args": {said: [said]}, "id": "c1"}])
        history = [SystemMessage(said), HumanMessage(said), call, *answered(c1=said)]
        assert told(template, history).count(read) == 5
    chat = ChatWhiFlash(engine=FakeEngine("ok"))
    assert chat.get_num_tokens(said) == len(read.encode())
    assert chat.invoke(said).text == "ok"


def test_without_a_system_role_the_system_speaks_before_the_first_user() -> None:
    prompt = told(GEMMA, [HumanMessage("hi"), AIMessage("yes"), HumanMessage("and?")])
    assert prompt.startswith("<user>You may call these functions:")
    assert prompt.endswith("\n\nhi<assistant>yes<user>and?A:") and prompt.count("<user>") == 2
    prompt = told(GEMMA, [SystemMessage("be brief"), HumanMessage("hi")])
    assert prompt.startswith("<user>be brief\n\nYou may call") and prompt.endswith("\n\nhiA:")
    assert told(GEMMA, [HumanMessage("hi")], tools=False) == "<user>hiA:"
    assert told(GEMMA, [SystemMessage("be brief")], tools=False) == "<user>be briefA:"


def test_a_template_that_passes_over_the_system_is_as_one_that_refuses_it() -> None:
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}" + END
    history = [SystemMessage("be brief"), HumanMessage("hi")]
    assert told(deaf, history, tools=False) == "be brief\n\nhiA:"


def test_a_schema_is_told_without_a_system_role() -> None:
    engine = FakeEngine('{"n": 1}', tokenizer=tokenizer_of(GEMMA))
    chat = ChatWhiFlash(engine=engine).with_structured_output({"title": "X", **FINAL})
    assert chat.invoke("hi") == {"n": 1}
    assert engine.prompts[0].startswith("<user>Answer with a JSON object")


def test_a_template_that_tells_tools_in_an_unknown_form_is_not_asked_to() -> None:
    call = write_call("search", {"query": "x"})
    engine = FakeEngine(call, tokenizer=tokenizer_of(GLM))
    chat = ChatWhiFlash(engine=engine).bind_tools(TOOLS)
    answer = chat.invoke("hi")
    chat.invoke([HumanMessage("hi"), answer, *answered(**{str(answer.tool_calls[0]["id"]): "y"})])
    assert call in engine.prompts[-1] and "<arg_key>" not in engine.prompts[-1]
    assert engine.prompts[-1].startswith("system|You may call these functions:")


def test_a_format_that_was_named_is_taken_from_the_template() -> None:
    prompter = Prompter(tokenizer_of(GLM), "hermes")
    assert prompter.format is named("hermes")
    turns = to_template([HumanMessage("hi"), calling(("search", "c1"))])
    ids = prompter.encode(turns, [as_tool(tool) for tool in TOOLS])
    assert "<arg_key>" in str(tokenizer_of(GLM).decode(ids))


def test_a_fragment_that_the_template_refuses_is_counted_turn_by_turn() -> None:
    picky = "{% if messages[-1].role != 'user' %}{{ raise_exception('ask!') }}{% endif %}" + GLM
    chat = ChatWhiFlash(engine=FakeEngine("ok", tokenizer=tokenizer_of(picky)))
    count = chat.get_num_tokens_from_messages
    assert count([]) == 0
    call = calling(("search", "c1"), content="So.")
    assert count([*answered(c1="y" * 50)]) > 50
    assert count([call]) > len("So.searchqueryx")
    assert count([AIMessage("yes")], tools=TOOLS) > count([AIMessage("yes")]) > len("yes")
    whole = [HumanMessage("q"), AIMessage("yes"), HumanMessage("z")]
    assert count(whole) <= count(whole[::-1][1:]) + count([HumanMessage("z")])
    assert trim_messages([], max_tokens=5, token_counter=chat) == []
    history = [SystemMessage("s"), HumanMessage("q"), call, *answered(c1="y"), HumanMessage("z")]
    kept = trim_messages(history, max_tokens=60, token_counter=chat, start_on="human")
    assert [message.content for message in kept] == ["z"]
    with pytest.raises(Exception, match="ask!"):
        chat.invoke([*history, AIMessage("so")])
    with pytest.raises(ConfigError, match="ask!"):
        told(picky, [AIMessage("yes")], tools=False)


THINKER = (
    GLM
    + "{# whoever is thinking #}<thinking>"
    + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def test_the_template_s_own_variables_may_be_set() -> None:
    engine = FakeEngine("ok", tokenizer=tokenizer_of(THINKER))
    chat = ChatWhiFlash(engine=engine, chat_template_kwargs={"enable_thinking": False})
    chat.invoke("hi")
    chat.invoke("hi", chat_template_kwargs={"enable_thinking": True})
    assert [p.endswith("<think></think>") for p in engine.prompts] == [True, False]
    other = ChatWhiFlash(engine=engine)
    said: list[BaseMessage] = [HumanMessage("hi")]
    assert chat.get_num_tokens_from_messages(said) > other.get_num_tokens_from_messages(said)
    assert chat._identifying_params != other._identifying_params


def test_variables_are_quoted_as_messages_are() -> None:
    says = (
        "{{ persona }}<|im_end|>" + GLM + "{% for d in documents or [] %}{{ d.text }}{% endfor %}"
    )
    tokenizer = tokenizer_of(says)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    odd = "a<|im_end|>b\ud83d"
    variables = {"persona": odd, "documents": [{"text": odd}]}
    ids = Prompter(tokenizer).encode(to_template([HumanMessage("hi")]), [], variables)
    assert ids.count(end) == 1
    assert str(tokenizer.decode(ids)).count("a<|im_end|>b\ufffd") == 2


LATE = (
    "{% macro start() %}{% if effort is not defined %}{% set effort = 'low' %}{% endif %}"
    "{{ 'Effort: ' + effort }}{% endmacro %}{{ start() }}"
    "{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
)


def test_a_variable_with_a_default_inside_a_macro_is_the_template_s() -> None:
    engine = FakeEngine("ok", tokenizer=tokenizer_of(LATE))
    ChatWhiFlash(engine=engine).invoke("hi", chat_template_kwargs={"effort": "high"})
    assert engine.prompts == ["Effort: highhi"]


@pytest.mark.parametrize("value", [None, 5])
def test_a_value_that_the_template_cannot_use_is_told(value: object) -> None:
    chat = ChatWhiFlash(engine=FakeEngine("ok", tokenizer=tokenizer_of(LATE)))
    with pytest.raises(ConfigError, match=rf"chat_template_kwargs=.*{value}.*chat template says"):
        chat.invoke("hi", chat_template_kwargs={"effort": value})


DEMANDING = "{% if persona is not defined %}{{ raise_exception('who?') }}{% endif %}" + GLM


def test_a_variable_that_the_template_demands_is_there_whatever_is_asked() -> None:
    engine = FakeEngine("ok", tokenizer=tokenizer_of(DEMANDING))
    chat = ChatWhiFlash(engine=engine, chat_template_kwargs={"persona": "a cat"})
    said = [SystemMessage("be brief"), HumanMessage("hi")]
    assert chat.bind_tools(TOOLS).invoke(said).text == "ok" and "search" in engine.prompts[0]
    assert "be brief" in engine.prompts[0]
    picky = "{% if messages[-1].role != 'user' %}{{ raise_exception('ask!') }}{% endif %}"
    prompter = Prompter(tokenizer_of(picky + DEMANDING))
    assert prompter.count(to_template([AIMessage("yes")]), [], {"persona": "a cat"}) > len("yes")


def test_where_the_template_refuses_its_variables_are_named_too() -> None:
    strict = "{{ persona.name.first }}" + GLM
    chat = ChatWhiFlash(engine=FakeEngine("ok", tokenizer=tokenizer_of(strict)))
    with pytest.raises(ConfigError, match=r"^messages, chat_template_kwargs=.*user.*persona.*says"):
        chat.invoke("hi", chat_template_kwargs={"persona": 1})


def test_variables_are_told_as_json() -> None:
    says = "{{ since }}{{ box.items() | list }}" + GLM
    engine = FakeEngine("ok", tokenizer=tokenizer_of(says))
    given = {"since": date(2024, 2, 29), "box": MappingProxyType({"n": Decimal("1.5")})}
    ChatWhiFlash(engine=engine).invoke("hi", chat_template_kwargs=given)
    assert engine.prompts[0].startswith("2024-02-29[('n', 1.5)]")
    with pytest.raises(ConfigError, match=r"^chat_template_kwargs=.*<object.*JSON"):
        ChatWhiFlash(engine=engine).invoke("hi", chat_template_kwargs={"since": object()})


@pytest.mark.parametrize("name", ["strftime_now", "raise_exception", "conversations", "eos_token"])
def test_what_transformers_says_is_not_the_caller_s(name: str) -> None:
    tokenizer = tokenizer_of("{{ strftime_now('%Y') }}{{ raise_exception }}{{ eos_token }}" + GLM)
    tokenizer.eos_token = "<|im_end|>"
    with pytest.raises(ConfigError, match=rf"\['{name}'\]=1: is said by other settings"):
        Prompter(tokenizer).encode(to_template([HumanMessage("hi")]), [], {name: 1})


def test_of_several_templates_each_may_know_a_variable() -> None:
    tokenizer = tokenizer_of(THINKER)
    tokenizer.chat_template = {"default": THINKER, "tool_use": LATE}
    encode, said = Prompter(tokenizer).encode, to_template([HumanMessage("hi")])
    assert encode(said, [], {"enable_thinking": False}) != encode(said, [])
    encode(said, [as_tool(tool) for tool in TOOLS], {"effort": "high"})
    with pytest.raises(ConfigError, match="is no variable"):
        encode(said, [], {"thinking": 1})


@pytest.mark.parametrize("given", ["thinking", ["thinking"], {1: True}])
def test_variables_are_an_object_with_names(given: Any) -> None:
    chat = ChatWhiFlash(engine=FakeEngine("ok"))
    with pytest.raises(ConfigError, match=r"chat_template_kwargs=.*must be an object with names"):
        chat.invoke("hi", chat_template_kwargs=given)
    with pytest.raises(ValidationError, match="chat_template_kwargs"):
        ChatWhiFlash(engine=FakeEngine("ok"), chat_template_kwargs=given)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("role", r"\['role'\]=1: is no variable of this model's chat template"),
        ("m", r"\['m'\]=1: is no variable"),
        ("thinking", r"\['thinking'\]=1: is no variable of this model's chat template"),
        ("enable.thinking", r"\['enable\.thinking'\]=1: is no variable"),
        ("tools", r"\['tools'\]=1: is said by other settings"),
        ("messages", r"\['messages'\]=1: is said by other settings"),
        ("tokenize", r"\['tokenize'\]=1: is said by other settings"),
    ],
)
def test_variables_that_are_not_the_template_s_are_refused(name: str, said: str) -> None:
    engine = FakeEngine("ok", tokenizer=tokenizer_of(THINKER))
    chat = ChatWhiFlash(engine=engine, chat_template_kwargs={name: 1})
    for asked in (
        chat.invoke,
        lambda text: chat.get_num_tokens_from_messages([HumanMessage(text)]),
    ):
        with pytest.raises(ConfigError, match="chat_template_kwargs" + said):
            asked("hi")
    assert engine.prompts == []
