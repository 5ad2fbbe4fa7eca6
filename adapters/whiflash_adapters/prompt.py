"""From template messages to the tokens of a prompt, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from whiflash_adapters.chat_template import USER, ChatTemplate
from whiflash_adapters.formats.choose import choose, named, speaks
from whiflash_adapters.formats.histories import as_demanded, without_system
from whiflash_adapters.formats.plain_turns import in_plain_turns
from whiflash_adapters.formats.tools import Tool, in_usual_order, without_strict
from whiflash_adapters.messages import TemplateMessage
from whiflash_adapters.quoting import Quoting, whole
from whiflash_engine.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASSISTANT: TemplateMessage = {"role": "assistant", "content": "hello"}


class Prompter:
    """One tokenizer's way of writing a conversation.

    format: how its model writes calls. tokens: the added vocabulary, by text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tool_format: str | None = None) -> None:
        """tool_format: a name of `FORMATS`; None goes by the chat template."""
        self._tokenizer = tokenizer
        self.tokens: Mapping[str, int] = tokenizer.get_added_vocab()
        self._template = ChatTemplate(tokenizer)
        template = self._template.text
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
        template = self._told(variables)
        turns: Sequence[TemplateMessage] = self._quoting.quoted(list(messages))
        tools = self._quoting.quoted([in_usual_order(without_strict(tool)) for tool in tools])
        if self._agreed and template.tells_tools:
            turns = as_demanded(turns, self.format)
        else:
            turns, tools = in_plain_turns(turns, tools, self.format), ()
        if turns[0]["role"] == "system" and not template.tells_system:
            turns = without_system(turns)
        return self._quoting.ids(template.rendered(turns, tools))

    def count(
        self,
        messages: Sequence[TemplateMessage],
        tools: Sequence[Tool],
        variables: Mapping[str, object] = MappingProxyType({}),
    ) -> int:
        """Tokens of the prompt. Where the template refuses a part of a conversation as a prompt
        they are summed over its turns, and rather too many than too few."""
        try:
            return len(self.encode(messages, tools, variables))
        except ConfigError:
            said = [turn["content"] for turn in in_plain_turns(messages, (), self.format)]
            around = self._around(variables)
            start = len(self.encode([USER], tools, variables))
            return start + sum(around + len(self.plain(text)) for text in said)

    def plain(self, text: str) -> list[int]:
        """A text on its own, without any template."""
        return cast("list[int]", self._tokenizer.encode(whole(text), add_special_tokens=False))

    def opens_reasoning(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends inside the reasoning, as some templates have it."""
        tail = self._tokenizer.decode(list(prompt[-8:]), clean_up_tokenization_spaces=False)
        return str(tail).rstrip().endswith(self.format.think[0])

    def _told(self, variables: Mapping[str, object]) -> ChatTemplate:
        if not variables:
            return self._template
        self._template.check(variables)
        return ChatTemplate(self._tokenizer, self._quoting.quoted(dict(variables)))

    def _around(self, variables: Mapping[str, object]) -> int:
        """Tokens that a turn needs around what is said in it, and for a word."""
        longer = self.encode([USER, _ASSISTANT, USER], (), variables)
        return (len(longer) - len(self.encode([USER], (), variables))) // 2
