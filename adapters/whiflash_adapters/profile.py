"""What a local chat model can do, in LangChain's words."""

from __future__ import annotations

from langchain_core.language_models.model_profile import ModelProfile


def profile_of(*, constrained: bool, context_length: int | None) -> ModelProfile:
    """constrained: whether grammars may be used. context_length: None where only loading the
    model would tell."""
    profile: ModelProfile = {
        "text_inputs": True,
        "image_inputs": False,
        "audio_inputs": False,
        "video_inputs": False,
        "text_outputs": True,
        "tool_calling": True,
        "tool_choice": True,
        "tool_call_streaming": True,
        "structured_output": constrained,
        "reasoning_output": True,
        "temperature": True,
        "open_weights": True,
    }
    if context_length is not None:
        profile["max_input_tokens"] = context_length - 1  # one at least must be generated
    return profile
