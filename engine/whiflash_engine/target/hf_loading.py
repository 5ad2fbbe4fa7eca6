"""Causal models of `transformers`, from a local folder: their weights, or what is wrong.

Code that comes with a model is never run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from whiflash_engine.checkpoints.tensors import safetensors_files
from whiflash_engine.config import ModelConfig, require
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.target.hf_geometry import geometry
from whiflash_engine.target.hf_past import has_states

# Models of images and text that are plain decoders when there is text alone. Others are not:
# some keep the place of the last image from one pass to the next.
_READ_TEXT_ALONE = ("mistral3",)


def causal_config(folder: Path) -> ModelConfig:
    """The geometry that `HFTarget` has, from config.json alone.

    Raises ConfigError for a family that the library does not know without code of the
    folder's own, and for a model that is no decoder or cannot be rolled back.
    """
    config = _read(folder)
    try:
        has_states(config)
        told = geometry(folder, config)
    except ConfigError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, CheckpointError) as error:
        why = f"its config says no usable geometry ({error})"
        raise ConfigError("model", str(folder), why) from error
    kind = str(config.model_type)
    require(not config.is_encoder_decoder, "model_type", kind, "is an encoder-decoder, not causal")
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) is not None
    require(
        known or kind in _READ_TEXT_ALONE,
        "model_type", kind, "transformers has no language model of it that takes text alone",
    )  # fmt: skip
    return told


def load_causal(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Weights that are missing are an error here; the library would invent them."""
    safetensors_files(folder)
    kind = _read(folder).model_type
    loader = AutoModelForImageTextToText if kind in _READ_TEXT_ALONE else AutoModelForCausalLM
    try:
        loaded: object = loader.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise CheckpointError(folder, f"a safetensors file is damaged ({error})") from error
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise _cannot_load(folder, error) from error
    assert isinstance(loaded, tuple)
    model, info = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(problem, ()))
        if names:
            raise CheckpointError(folder, f"{problem.replace('_', ' ')}: {', '.join(names[:4])}")
    assert isinstance(model, PreTrainedModel)
    return model


def _read(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, TypeError) as error:
        raise _cannot_load(folder, error) from error
    except StrictDataclassError as error:  # which says where; its cause says what
        raise _cannot_load(folder, error.__cause__ or error) from error


def _cannot_load(folder: Path, error: BaseException) -> ConfigError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConfigError("model", str(folder), f"transformers cannot load it: {why}")
