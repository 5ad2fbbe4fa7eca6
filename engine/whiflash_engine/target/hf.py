"""Any other causal model, run by `transformers` behind the same protocol.

Slower than the native runner and as general as the library. A rejected draft is taken back by
cutting keys and values off, and where there are states beside them, by setting those back to a
copy (`StateCache`). Models with which neither is possible are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from operator import methodcaller
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from whiflash_engine.config import ModelConfig, require
from whiflash_engine.devices import dtype_name
from whiflash_engine.errors import ConfigError
from whiflash_engine.target.base import TargetCache, TargetOutput
from whiflash_engine.target.hf_cache import HFCache
from whiflash_engine.target.hf_loading import causal_config, load_causal
from whiflash_engine.target.hf_past import has_states
from whiflash_engine.target.hf_states import StateCache

# Of what the tokens before do to a hidden state, so much may be rounding.
_ROUNDED: Final = 0.1


class HFTarget:
    """Implements `Target` for a local folder that `load_causal` can load.

    taps: boundary indices 0..num_layers. Code that comes with a model is never run.
    A longrope model's context ends at its original length (see `checkpoints.positions`).
    Raises CheckpointError for damaged or incomplete weights, ConfigError for a model that
    is not causal or cannot be rolled back, as far as possible before the weights are read.
    """

    def __init__(
        self, folder: Path, *, taps: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config = causal_config(folder)
        layers = self._config.num_layers
        for tap in taps:
            require(0 <= tap <= layers, "tap", tap, f"must lie in 0..{layers}")
        self._taps = taps
        self._model = load_causal(folder, dtype)
        nn.Module.to(self._model, device).train(False)
        # by name: the library annotates one of the two only
        head: object = methodcaller("get_output_embeddings")(self._model)
        table: object = methodcaller("get_input_embeddings")(self._model)
        if not isinstance(head, nn.Linear) or not isinstance(table, nn.Module):
            raise ConfigError("model", str(folder), "has no output projection that can be shared")
        self._head, self._table = head, table
        # what nobody listens to need not be found
        self._last = _last_layer(self._model, layers) if layers in taps else nn.Identity()
        self._dtype, self._device = dtype, device
        self._has_states = has_states(self._model.config)
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
    def precision(self) -> str:
        return dtype_name(self._dtype)

    @property
    def taps(self) -> tuple[int, ...]:
        return self._taps

    def new_cache(self, capacity: int) -> HFCache:
        return StateCache(self._model.config) if self._has_states else HFCache()

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        if not isinstance(cache, HFCache):
            raise TypeError(f"a cache of this target was expected, not {type(cache).__name__}")
        n = len(tokens)
        require(n > 0, "tokens", n, "there must be at least one")
        outputs = [self._run(piece, cache, wanted) for piece, wanted in cache.passes(tokens, rows)]
        logits, features, hidden = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return TargetOutput(logits, features[-n:], hidden)

    def _run(self, tokens: Sequence[int], cache: HFCache, rows: int) -> tuple[Tensor, ...]:
        """(rows, vocab) logits, (n, taps * hidden) features, (rows, hidden) hidden states."""
        n = len(tokens)
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self._device)
        # A long prompt wants one row of logits, not thousands; 0 would mean all of them.
        given: dict[str, object] = {"logits_to_keep": max(rows, 1)} if self._can_keep else {}
        if self._has_states:  # some of these count their positions from 0 in every pass
            places = torch.arange(cache.held, cache.held + n, device=self._device)
            given["position_ids"] = places[None]
        final: list[Tensor] = []
        leaving: list[Tensor] = []
        # What enters the output projection is the final hidden state, in every architecture.
        head = self._head.register_forward_pre_hook(lambda _, entering: final.append(entering[0]))
        last = self._last.register_forward_hook(lambda *call: leaving.append(_stream(call[-1])))
        with head, last:
            out = self._model(
                input_ids=ids,
                past_key_values=cache.inner,
                use_cache=True,
                output_hidden_states=bool(self._taps),
                **given,
            )
        hidden_rows, logits = final[-1][0], out.logits[0]
        # The library tells the last boundary too, but after the norm.
        boundaries = [*out.hidden_states[:-1], *leaving] if self._taps else []
        # Gemma 3n's stream has several parts, (parts, 1, n, hidden); the first is the active one.
        states = [boundaries[tap].flatten(0, -3)[0] for tap in self._taps]
        features = torch.cat(states, -1) if states else hidden_rows.new_empty(n, 0)
        start = hidden_rows.shape[0] - rows
        return logits[start:].float(), features, hidden_rows[start:]

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self._table(tokens)
        return embedded

    @property
    def embedding(self) -> None:
        return None  # the model may scale what it looks up

    def head_rows(self, ids: Tensor | None) -> Tensor:
        weight = self._head.weight.detach()
        return weight if ids is None else weight[ids]

    def _probe(self) -> None:
        """A model with a state of its own ignores our cache, and some ignore the state in it as
        soon as they are given several tokens: then they do not know what came before."""
        ids = [self._config.vocab_size * i // 16 for i in range(16)]
        before, after = ids[:8], ids[8:]
        cache, name = self.new_cache(len(ids)), type(self._model).__name__
        for tokens in (before, ids[:2]):
            self.forward(tokens, cache, rows=0)
        cache.crop(len(before))
        found = self.forward(after, cache, rows=len(after)).hidden.float()
        require(cache.length == len(ids), "model", name, "keeps a state of its own")
        if self._has_states:
            whole, alone = (
                self.forward(tokens, self.new_cache(16), rows=len(after)).hidden.float()
                for tokens in (ids, after)
            )
            lost = ((found - whole).norm(dim=-1) / (alone - whole).norm(dim=-1)).median()
            why = "forgets what came before when rejected drafts are taken back"
            require(not float(lost) > _ROUNDED, "model", name, why)


def _last_layer(model: PreTrainedModel, count: int) -> nn.Module:
    """The decoder's layers are its first list of as many modules, whatever its name."""
    decoder: object = methodcaller("get_decoder")(model)
    assert isinstance(decoder, nn.Module)
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module[-1]
    raise ConfigError("tap", count, f"cannot be observed in {type(model).__name__}")


def _stream(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
