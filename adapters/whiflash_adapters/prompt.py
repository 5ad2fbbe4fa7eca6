"""From template messages to the tokens of a prompt, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from whiflash_adapters.formats.hermes_text import START, THINK, Tool, in_plain_turns, in_usual_order
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
    """One tokenizer's way of writing a conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tools_known: bool | None = None
        self.tags_are_tokens = START in tokenizer.get_added_vocab()

    def encode(self, messages: Sequence[TemplateMessage], tools: Sequence[Tool]) -> list[int]:
        """The prompt, ready for the assistant's turn.

        Control tokens inside messages are encoded as the plain text they are, so that no tool
        result can open a turn of its own.
        """
        tools = [in_usual_order(tool) for tool in tools]
        if not self._renders_tools():
            messages, tools = in_plain_turns(messages, tools), ()
        return self._apply(messages, tools, sanitize=True)

    def plain(self, text: str) -> list[int]:
        """A text on its own, without any template."""
        return cast("list[int]", self._tokenizer.encode(text, add_special_tokens=False))

    def opens_reasoning(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends inside `<think>`, as some templates have it."""
        tail = self._tokenizer.decode(list(prompt[-8:]), clean_up_tokenization_spaces=False)
        return str(tail).rstrip().endswith(THINK)

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
