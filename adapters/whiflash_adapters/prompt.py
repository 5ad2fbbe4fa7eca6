"""From template messages to the tokens of a prompt, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from whiflash_adapters.formats.choose import choose, named, speaks
from whiflash_adapters.formats.histories import as_demanded, without_system
from whiflash_adapters.formats.plain_turns import in_plain_turns
from whiflash_adapters.formats.tools import Tool, in_usual_order, without_strict
from whiflash_adapters.messages import TemplateMessage
from whiflash_adapters.quoting import Quoting, whole
from whiflash_adapters.template_variables import variables_of
from whiflash_engine.config import require
from whiflash_engine.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}
_USER: TemplateMessage = {"role": "user", "content": "hello"}
_ASSISTANT: TemplateMessage = {"role": "assistant", "content": "hello"}
_SYSTEM: TemplateMessage = {"role": "system", "content": "answer the probe"}


class Prompter:
    """One tokenizer's way of writing a conversation.

    format: how its model writes calls. tokens: the added vocabulary, by text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tool_format: str | None = None) -> None:
        """tool_format: a name of `FORMATS`; None goes by the chat template."""
        self._tokenizer = tokenizer
        self.tokens: Mapping[str, int] = tokenizer.get_added_vocab()
        template = self._template()
        self.format = named(tool_format) if tool_format else choose(template, self.tokens)
        # Who names a format knows what the template's words on tools come to.
        self._agreed = tool_format is not None or speaks(template, self.format)
        self._quoting = Quoting(tokenizer, template, self.format.markers)

    def encode(
        self,
        messages: Sequence[TemplateMessage],
        tools: Sequence[Tool],
        variables: Mapping[str, object] = MappingProxyType({}),
    ) -> list[int]:
        """The prompt, ready for the assistant's turn. variables: of the template, beside these.

        Control tokens inside messages, tools and variables are encoded as the plain text they
        are, so that no tool result can open a turn of its own. ConfigError where the template
        refuses, and for a variable that it does not know.
        """
        self._check(variables)
        variables = self._quoting.quoted(dict(variables))
        turns: Sequence[TemplateMessage] = self._quoting.quoted(list(messages))
        tools = self._quoting.quoted([in_usual_order(without_strict(tool)) for tool in tools])
        if self._tells_tools:
            turns = as_demanded(turns, self.format)
        else:
            turns, tools = in_plain_turns(turns, tools, self.format), ()
        if turns[0]["role"] == "system" and not self._tells_system:
            turns = without_system(turns)
        return self._quoting.ids(self._rendered(turns, tools, variables))

    def count(
        self,
        messages: Sequence[TemplateMessage],
        tools: Sequence[Tool],
        variables: Mapping[str, object] = MappingProxyType({}),
    ) -> int:
        """Tokens of the prompt. Where the template refuses a part of a conversation as a prompt
        they are summed over its turns, and rather too many than too few."""
        self._check(variables)
        try:
            return len(self.encode(messages, tools, variables))
        except ConfigError:
            said = [turn["content"] for turn in in_plain_turns(messages, (), self.format)]
            start = len(self.encode([_USER], tools))
            return start + sum(self._around + len(self.plain(text)) for text in said)

    def plain(self, text: str) -> list[int]:
        """A text on its own, without any template."""
        return cast("list[int]", self._tokenizer.encode(whole(text), add_special_tokens=False))

    def opens_reasoning(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends inside the reasoning, as some templates have it."""
        tail = self._tokenizer.decode(list(prompt[-8:]), clean_up_tokenization_spaces=False)
        return str(tail).rstrip().endswith(self.format.think[0])

    def _template(self) -> str:
        """The text of the chat template; of several, that for tools."""
        template = self._tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("tool_use", template.get("default"))
        return str(template or "")

    @cached_property
    def _tells_tools(self) -> bool:
        """Whether the template tells of tools, and of calls in the model's format."""
        if not self._agreed:
            return False
        return self._rendered([_USER], [_PROBE_TOOL]) != self._rendered([_USER], ())

    @cached_property
    def _tells_system(self) -> bool:
        """Whether the template takes what the system says, and passes it on."""
        try:
            return _SYSTEM["content"] in self._rendered([_SYSTEM, _USER], ())
        except ConfigError:
            return False

    @cached_property
    def _around(self) -> int:
        """Tokens that a turn needs around what is said in it, and for a word."""
        longer = self.encode([_USER, _ASSISTANT, _USER], ())
        return (len(longer) - len(self.encode([_USER], ()))) // 2

    @cached_property
    def _variables(self) -> frozenset[str]:
        try:
            return variables_of(self._tokenizer.chat_template)
        except TemplateError as error:
            raise ConfigError("chat_template", self._template(), f"is none: {error}") from error

    def _check(self, variables: Mapping[str, object]) -> None:
        """ConfigError for what is not the template's to know."""
        ours = {"messages", *signature(self._tokenizer.apply_chat_template).parameters}
        ours -= {"documents"}  # transformers only hands them on
        for name, value in variables.items():
            field = f"chat_template_kwargs[{name!r}]"
            require(name not in ours, field, value, "is said by other settings")
            known = name in self._variables
            require(known, field, value, "is no variable of this model's chat template")

    def _rendered(
        self,
        messages: Sequence[TemplateMessage],
        tools: Sequence[Tool],
        variables: Mapping[str, object] = MappingProxyType({}),
    ) -> str:
        # transformers' annotation is narrower than what its templates take.
        turns = cast("list[dict[str, str]]", [dict(message) for message in messages])
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                [dict(tool) for tool in tools] or None,
                add_generation_prompt=True,
                tokenize=False,
                **variables,
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ConfigError("messages", roles, f"the chat template says: {error}") from error
        except TypeError as error:
            if not variables:
                raise
            why = f"the chat template says: {error}"
            raise ConfigError("chat_template_kwargs", dict(variables), why) from error
        return str(text)
