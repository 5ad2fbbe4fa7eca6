"""Those who could beat us: transformers' `generate`, and llama.cpp where it is installed.

Greedy, ending where the answer ends, with and without drafts copied from the text.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from whiflash_agents.measure.methods import LLAMA, LLAMA_LOOKUP, PROMPT_LOOKUP, TRANSFORMERS
from whiflash_engine.config import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from whiflash_engine.engine import Engine

Peer = Callable[[Sequence[int], int], int]
"""Prompt ids and most new tokens; how many were made."""

_COPIED = 10
"""Most tokens to copy from the text in a round."""


def peers(engine: Engine, folder: Path, gguf: Path | None) -> Mapping[str, Peer]:
    """folder: the model's files, for transformers. gguf: the same model for llama.cpp, in
    whatever precision the file has; see `require_llama`."""
    found = {**_transformers(engine, folder)}
    return found if gguf is None else {**found, **_llama(engine, gguf)}


def _transformers(engine: Engine, folder: Path) -> dict[str, Peer]:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.target.dtype)
    model = cast("PreTrainedModel", loaded.to(engine.target.device).eval())
    stops = engine.stop_token_ids

    def generating(copied: int | None) -> Peer:
        return lambda ids, tokens: _generate(model, ids, tokens, stops, copied)

    return {TRANSFORMERS: generating(None), PROMPT_LOOKUP: generating(_COPIED)}


def _generate(
    model: PreTrainedModel, ids: Sequence[int], tokens: int, stops: Sequence[int],
    copied: int | None,
) -> int:  # fmt: skip
    """copied: most tokens to copy in a round; None drafts nothing."""
    prompt = torch.tensor([ids], device=model.device)
    with _quiet(), torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens,
            do_sample=False, eos_token_id=list(stops) or None, pad_token_id=0,
            prompt_lookup_num_tokens=copied,
        )  # fmt: skip
    return int(out.shape[1]) - len(ids)


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def require_llama(gguf: Path) -> None:
    """ConfigError without the file or llama.cpp; to be told before anything is loaded."""
    require(gguf.is_file(), "gguf", str(gguf), "no such file")
    why = "needs llama-cpp-python, which is not installed"
    require(importlib.util.find_spec("llama_cpp") is not None, "gguf", str(gguf), why)


def _llama(engine: Engine, gguf: Path) -> dict[str, Peer]:
    llama = importlib.import_module("llama_cpp")
    lookup = importlib.import_module("llama_cpp.llama_speculative")
    threads, stops = torch.get_num_threads(), frozenset(engine.stop_token_ids)

    def loaded(draft: object) -> Peer:
        # a package without types, and not a dependency
        model: Any = llama.Llama(
            str(gguf), n_ctx=engine.context_length, n_threads=threads, n_threads_batch=threads,
            draft_model=draft, verbose=False,
        )  # fmt: skip

        def generate(ids: Sequence[int], tokens: int) -> int:
            model.reset()
            made = 0
            for token in model.generate(list(ids), temp=0.0):
                made += 1
                if token in stops or made >= tokens:
                    break
            return made

        return generate

    return {
        LLAMA: loaded(None),
        LLAMA_LOOKUP: loaded(lookup.LlamaPromptLookupDecoding(num_pred_tokens=_COPIED)),
    }
