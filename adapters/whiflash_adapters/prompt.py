"""From template messages to the tokens of a prompt, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from whiflash_adapters.formats.choose import choose, named
from whiflash_adapters.formats.plain_turns import in_plain_turns
from whiflash_adapters.formats.tools import Tool, in_usual_order
from whiflash_adapters.messages import TemplateMessage
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


class Prompter:
    """One tokenizer's way of writing a conversation.

    format: how its model writes calls. tokens: the added vocabulary, by text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tool_format: str | None = None) -> None:
        """tool_format: a name of `FORMATS`; None goes by the chat template."""
        self._tokenizer = tokenizer
        self._tools_known: bool | None = None
        self.tokens: Mapping[str, int] = tokenizer.get_added_vocab()
        self.format = named(tool_format) if tool_format else choose(self._template(), self.tokens)

    def encode(self, messages: Sequence[TemplateMessage], tools: Sequence[Tool]) -> list[int]:
        """The prompt, ready for the assistant's turn.

        Control tokens inside messages are encoded as the plain text they are, so that no tool
        result can open a turn of its own.
        """
        tools = [in_usual_order(tool) for tool in tools]
        if not self._renders_tools():
            messages, tools = in_plain_turns(messages, tools, self.format), ()
        return self._apply(messages, tools, sanitize=True)

    def plain(self, text: str) -> list[int]:
        """A text on its own, without any template."""
        return cast("list[int]", self._tokenizer.encode(text, add_special_tokens=False))

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

    def _renders_tools(self) -> bool:
        if self._tools_known is None:
            turn: TemplateMessage = {"role": "user", "content": "hello"}
            self._tools_known = self._apply([turn], [_PROBE_TOOL]) != self._apply([turn], ())
        return self._tools_known

    def _apply(
        self, messages: Sequence[TemplateMessage], tools: Sequence[Tool], *, sanitize: bool = False
    ) -> list[int]:
        # transformers' annotation is narrower than what its templates take.
        turns = cast("list[dict[str, str]]", [dict(message) for message in messages])
        try:
            ids = self._tokenizer.apply_chat_template(
                turns,
                [dict(tool) for tool in tools] or None,
                add_generation_prompt=True,
                sanitize_control_tokens=sanitize,
                return_dict=False,
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ConfigError("messages", roles, f"the chat template says: {error}") from error
        return cast("list[int]", ids)
