"""Which format a model writes, from its own chat template."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import regex

from whiflash_adapters.formats.base import CallFormat
from whiflash_adapters.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from whiflash_adapters.formats.harmony import HARMONY
from whiflash_adapters.formats.hermes import HERMES
from whiflash_adapters.formats.llama3 import LLAMA3
from whiflash_adapters.formats.mistral import MISTRAL, MISTRAL_LIST
from whiflash_adapters.formats.qwen_coder import QWEN_CODER
from whiflash_adapters.formats.smollm2 import SMOLLM2
from whiflash_engine.errors import ConfigError

_ALL: tuple[CallFormat, ...] = (
    HERMES, QWEN_CODER, LLAMA3, MISTRAL, MISTRAL_LIST, SMOLLM2, DEEPSEEK_V31, DEEPSEEK_V3, HARMONY,
)  # fmt: skip
FORMATS: Mapping[str, CallFormat] = {format_.name: format_ for format_ in _ALL}

_HERMES_CALL = regex.compile(r'(?s)<tool_call>.*"arguments\\?"')


def named(name: str) -> CallFormat:
    """ConfigError if there is no such format."""
    if name not in FORMATS:
        raise ConfigError("tool_format", name, f"must be one of {', '.join(FORMATS)}")
    return FORMATS[name]


def choose(template: str, tokens: Collection[str]) -> CallFormat:
    """From the text of a chat template and the added vocabulary; Hermes if nothing else is told.

    Each family's template holds words that no other family's does.
    """
    if "<function=" in template:
        return QWEN_CODER
    if "<tool_call>[" in template:
        return SMOLLM2
    if "<tool_call>" in template:
        return HERMES
    if "<｜tool▁sep｜>" in template:
        return DEEPSEEK_V3 if "```json" in template else DEEPSEEK_V31
    if "<|channel|>" in template:
        return HARMONY
    if "[TOOL_CALLS]" in template:
        return MISTRAL if "[ARGS]" in tokens or "[ARGS]" in template else MISTRAL_LIST
    if '"parameters": ' in template and "<|start_header_id|>" in template:
        return LLAMA3
    return HERMES


def speaks(template: str, format_: CallFormat) -> bool:
    """Whether what the template says of tools is in the format that was chosen for it. Hermes
    alone is also chosen where nothing is told, and such a template may have a form of its own."""
    return format_ is not HERMES or _HERMES_CALL.search(template) is not None
