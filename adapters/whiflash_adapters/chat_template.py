"""A tokenizer's chat template with its variables set: what it writes, and what it passes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from whiflash_adapters.formats.tools import Tool
from whiflash_adapters.messages import TemplateMessage
from whiflash_adapters.template_variables import variables_of
from whiflash_engine.config import require
from whiflash_engine.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER: TemplateMessage = {"role": "user", "content": "hello"}
_SYSTEM: TemplateMessage = {"role": "system", "content": "answer the probe"}
_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}


class ChatTemplate:
    """variables: told to it beside messages and tools, in probes of it too: it may demand one."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        variables: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self._tokenizer, self._variables = tokenizer, variables

    @property
    def text(self) -> str:
        """Of several, that for tools."""
        template = self._tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("tool_use", template.get("default"))
        return str(template or "")

    @cached_property
    def tells_tools(self) -> bool:
        """Whether it says anything else where there are tools."""
        return self.rendered([USER], [_TOOL]) != self.rendered([USER], ())

    @cached_property
    def tells_system(self) -> bool:
        """Whether it takes what the system says, and passes it on."""
        try:
            return _SYSTEM["content"] in self.rendered([_SYSTEM, USER], ())
        except ConfigError:
            return False

    def check(self, variables: Mapping[str, object]) -> None:
        """ConfigError for what is not the template's to know, or not the caller's to say."""
        own = self._tokenizer
        ours = {"messages", *signature(own.apply_chat_template).parameters}
        ours -= {"documents"}  # transformers only hands them on
        # what transformers tells every template by itself
        ours |= {"conversations", "raise_exception", "strftime_now", *own.special_tokens_map}
        for name, value in variables.items():
            field = f"chat_template_kwargs[{name!r}]"
            require(name not in ours, field, value, "is said by other settings")
            known = name in self._known
            require(known, field, value, "is no variable of this model's chat template")

    @cached_property
    def _known(self) -> frozenset[str]:
        try:
            return variables_of(self._tokenizer.chat_template)
        except TemplateError as error:
            raise ConfigError("chat_template", self.text, f"is none: {error}") from error

    def rendered(self, messages: Sequence[TemplateMessage], tools: Sequence[Tool]) -> str:
        """The text of a prompt. ConfigError where the template refuses."""
        # transformers' annotation is narrower than what its templates take.
        turns = cast("list[dict[str, str]]", [dict(message) for message in messages])
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                [dict(tool) for tool in tools] or None,
                add_generation_prompt=True,
                tokenize=False,
                **self._variables,
            )
        except (TemplateError, TypeError) as error:
            roles, why = [turn["role"] for turn in messages], f"the chat template says: {error}"
            if self._variables:  # no telling which of both it means
                given = (roles, dict(self._variables))
                raise ConfigError("messages, chat_template_kwargs", given, why) from error
            if isinstance(error, TypeError):
                raise
            raise ConfigError("messages", roles, why) from error
        return str(text)
