"""What a caller may give for a prompt, as messages."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue

from whiflash_engine.errors import ConfigError

Prompt = LanguageModelInput | BaseMessage


def conversation(prompt: Prompt) -> list[BaseMessage]:
    """A new list. A message by itself is one, as a text is; in a list of them ("user", "hi"),
    {"role": "user", "content": "hi"} and texts stand for messages too."""
    if isinstance(prompt, BaseMessage):
        return [prompt]
    if isinstance(prompt, str):
        return [HumanMessage(prompt)]
    if not isinstance(prompt, PromptValue | Sequence):
        raise ConfigError("prompt", prompt, "must be a text, a message, or a list of messages")
    try:
        return [*convert_to_messages(prompt)]
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError("prompt", prompt, f"is no list of messages: {error}") from error
