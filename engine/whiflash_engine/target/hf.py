"""Any other causal model, run by `transformers` behind the same protocol.

Slower than the native runner and as general as the library. Only models whose whole past
lies in a key-value cache can be rolled back after a rejected draft; the rest are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from operator import methodcaller
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from whiflash_engine.config import ModelConfig, require
from whiflash_engine.errors import ConfigError
from whiflash_engine.target.base import TargetCache, TargetOutput
from whiflash_engine.target.hf_loading import geometry, load_causal

# Layers that keep every key, or could: rolling back is cutting the end off.
_CROPPABLE = ("DynamicLayer", "DynamicSlidingWindowLayer")


class HFCache:
    """A `DynamicCache` of plain layers under our verbs.

    Sliding-window layers get plain layers as well: a window that forgets cannot be rolled
    back, and the model's own mask hides what lies outside of it.
    """

    def __init__(self) -> None:
        self.inner = DynamicCache()

    @property
    def length(self) -> int:
        return int(self.inner.get_seq_length())

    @property
    def nbytes(self) -> int:
        return sum(
            layer.keys.nbytes + layer.values.nbytes
            for layer in self.inner.layers
            if layer.is_initialized
        )

    def crop(self, length: int) -> None:
        """After a pass that broke off, layers differ in length, and keys from values: each
        is cut to what it shall have, where the library's crop takes as much from all."""
        for layer in self.inner.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[..., :length, :]
                layer.values = layer.values[..., :length, :]


class HFTarget:
    """Implements `Target` for a local folder that `AutoModelForCausalLM` can load.

    taps: boundary indices 0..num_layers-1; the last boundary is not observable here, as
    the library normalises it. Code that comes with a model is never run.
    Raises CheckpointError for damaged or incomplete weights, ConfigError for a model that
    is not causal or cannot be rolled back.
    """

    def __init__(
        self, folder: Path, *, taps: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._model = load_causal(folder, dtype)
        nn.Module.to(self._model, device).train(False)
        _refuse_uncroppable(self._model)
        # by name: the library annotates one of the two only
        head: object = methodcaller("get_output_embeddings")(self._model)
        table: object = methodcaller("get_input_embeddings")(self._model)
        if not isinstance(head, nn.Linear) or not isinstance(table, nn.Module):
            raise ConfigError("model", str(folder), "has no output projection that can be shared")
        self._head, self._table = head, table
        self._config = geometry(folder, self._model.config)
        for tap in taps:
            last = self._config.num_layers - 1
            require(0 <= tap <= last, "tap", tap, f"must lie in 0..{last}")
        self._taps = taps
        self._dtype, self._device = dtype, device
        self._can_keep = "logits_to_keep" in signature(self._model.forward).parameters
        self._probe()

    @property
    def config(self) -> ModelConfig:
        """Geometry; the rotary and bias fields say nothing where the model has no such thing."""
        return self._config

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def taps(self) -> tuple[int, ...]:
        return self._taps

    def new_cache(self, capacity: int) -> HFCache:
        return HFCache()

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        if not isinstance(cache, HFCache):
            raise TypeError(f"a cache of this target was expected, not {type(cache).__name__}")
        n = len(tokens)
        require(n > 0, "tokens", n, "there must be at least one")
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self._device)
        # A long prompt wants one row of logits, not thousands; 0 would mean all of them.
        keep = {"logits_to_keep": max(rows, 1)} if self._can_keep else {}
        last: list[Tensor] = []
        # What enters the output projection is the final hidden state, in every architecture.
        hook = self._head.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
        try:
            out = self._model(
                input_ids=ids,
                past_key_values=cache.inner,
                use_cache=True,
                output_hidden_states=bool(self._taps),
                **keep,
            )
        finally:
            hook.remove()
        hidden_rows, logits = last[-1][0], out.logits[0]
        states = [out.hidden_states[tap][0] for tap in self._taps]
        features = torch.cat(states, -1) if states else hidden_rows.new_empty(n, 0)
        start = hidden_rows.shape[0] - rows
        return TargetOutput(logits[start:].float(), features, hidden_rows[start:])

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self._table(tokens)
        return embedded

    def head_rows(self, ids: Tensor | None) -> Tensor:
        weight = self._head.weight.detach()
        return weight if ids is None else weight[ids]

    def _probe(self) -> None:
        """A model with a state of its own ignores our cache: it would not grow or shrink."""
        cache = self.new_cache(4)
        self.forward((0, 1, 1), cache, rows=0)
        grown = cache.length == 3
        cache.crop(2)
        self.forward((1,), cache, rows=0)
        name = type(self._model).__name__
        require(grown and cache.length == 3, "model", name, "keeps a state of its own")


def _refuse_uncroppable(model: PreTrainedModel) -> None:
    name = type(model).__name__
    require(not model.config.is_encoder_decoder, "model", name, "is an encoder-decoder, not causal")
    layers = DynamicCache(config=model.config).layers
    kinds = sorted({type(layer).__name__ for layer in layers} - set(_CROPPABLE))
    require(
        not kinds and not getattr(model, "_is_stateful", False),
        "model", name, "has a recurrent state, which a rejected draft cannot be taken out of",
    )  # fmt: skip
