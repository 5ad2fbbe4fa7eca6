"""What the model is told of a call: a result, an error, or that it cannot read what came back."""

from __future__ import annotations

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import ToolMessage

from whiflash_adapters.messages import to_template
from whiflash_engine.errors import ConfigError

_BESIDE_TEXT = (
    "image_inputs", "image_url_inputs", "image_tool_message", "pdf_inputs", "pdf_tool_message",
    "audio_inputs", "video_inputs", "attachment",
)  # fmt: skip


def result(said: object) -> ToolMessage:
    return said if isinstance(said, ToolMessage) else ToolMessage(str(said), tool_call_id="")


def failure(why: object) -> ToolMessage:
    return ToolMessage(f"Error: {why}", tool_call_id="", status="error")


def reads_text_only(model: BaseChatModel) -> bool:
    """By its profile; a model that has none, or whose says nothing of images, is given whatever
    comes."""
    profile = model.profile or {}
    return "image_inputs" in profile and not any(profile.get(name) for name in _BESIDE_TEXT)


def in_text(said: ToolMessage) -> ToolMessage:
    """The same without images and other data, which it complains of instead; texts stay."""
    if isinstance(said.content, str):
        return said
    kinds = [_unreadable(block) for block in said.content]
    missed = list(dict.fromkeys(kind for kind in kinds if kind))
    if not missed:
        return said
    why = f"{said.name} returned {' and '.join(missed)}, which this model cannot read"
    told = [block for block, kind in zip(said.content, kinds, strict=True) if not kind]
    complaint: list[str | dict[str, object]] = [{"type": "text", "text": failure(why).text}]
    return said.model_copy(update={"content": complaint + told, "status": "error"})


def _unreadable(block: str | dict[str, object]) -> str:
    """What it is, if a prompt cannot tell it; whoever writes prompts knows."""
    try:
        to_template([ToolMessage([block], tool_call_id="")])
    except ConfigError as error:
        kind = str(error.value)
        return "an image" if kind.startswith("image") else f"{kind} data"
    return ""
