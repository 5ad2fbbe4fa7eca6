"""What the formats of all drafters share: names, vocabulary, fitting the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import Shape, check_tensors, read_folder
from whiflash_engine.config import ModelConfig
from whiflash_engine.errors import CheckpointError

_MOST_ADDED = 256
"""Tokens that a fine-tune adds, padding included; with more it is another tokenizer."""


@dataclass(frozen=True, slots=True)
class DraftFiles:
    """A drafter's folder as read: the vocabulary maps stand apart from the weights."""

    folder: Path
    weights: dict[str, Tensor]
    d2t: Tensor | None
    t2d: Tensor | None

    @staticmethod
    def read(folder: Path) -> DraftFiles:
        """Names without the `model.` prefix; buffers and copies of the target left out."""
        weights: dict[str, Tensor] = {}
        for name, tensor in read_folder(folder).items():
            if name.startswith("verifier_") or name.endswith("rotary_emb.inv_freq"):
                continue
            name = name.removeprefix("model.")
            if name in weights:
                raise CheckpointError(folder, f"holds tensor {name!r} under two names")
            weights[name] = tensor
        return DraftFiles(folder, weights, weights.pop("d2t", None), weights.pop("t2d", None))

    def require_kind(self, wanted: str) -> None:
        """Refuse a drafter of another kind, which the norms of the features betray."""
        found, fc = None, self.weights.get("fc.weight")
        if "hidden_norm.weight" in self.weights:
            found = "a DFlash"
        elif any(name.endswith(".hidden_norm.weight") for name in self.weights):
            found = "an EAGLE-3"
        elif fc is not None and fc.ndim == 2 and fc.shape[1] == 2 * fc.shape[0]:
            found = "an EAGLE-1 or EAGLE-2"  # one feature beside the embedding, and no norm
        if found is not None and not found.endswith(wanted):
            raise CheckpointError(self.folder, f"this is {found} checkpoint, not {wanted}")

    def vocab(self, layer: Fields, target: ModelConfig) -> int:
        """How many of the target's tokens the drafter was made for: all, or all but a few that
        the target was taught later. Those have no row in an embedding of the drafter's own."""
        vocab = layer.integer("vocab_size", target.vocab_size)
        added = target.vocab_size - vocab
        if not 0 <= added <= _MOST_ADDED or (added and "embed_tokens.weight" in self.weights):
            raise layer.fail(
                "vocab_size",
                f"the drafter was made for a vocabulary of {vocab}, "
                f"the target has {target.vocab_size}",
            )
        return vocab

    def head_dim(self, layer: Fields, heads: int, prefix: str) -> int:
        """The config's number, else what q_proj says: families differ in what silence means."""
        q = self.weights.get(f"{prefix}.self_attn.q_proj.weight")
        rows = at_least(1, layer, "hidden_size") if q is None or q.ndim == 0 else q.shape[0]
        return at_least(2, layer, "head_dim", rows // heads)

    def draft_vocab(self, fields: Fields, vocab: int) -> int:
        """The config's number, else what the tensors say, else the whole vocabulary."""
        found = self.weights.get("lm_head.weight") if self.d2t is None else self.d2t
        rows = vocab if found is None or found.ndim == 0 else found.shape[0]
        return at_least(1, fields, "draft_vocab_size", rows)

    def checked(
        self,
        shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]],
        vocab: int,
        draft_vocab: int,
        target_vocab: int,
    ) -> dict[str, Tensor]:
        """The weights, exactly those of `shapes` (required, optional), with `draft_ids`."""
        check_tensors(self.folder, self.weights, *shapes)
        ids = draft_ids(self.folder, self.d2t, self.t2d, vocab=vocab, draft_vocab=draft_vocab)
        if ids is None and vocab < target_vocab and "lm_head.weight" in self.weights:
            ids = torch.arange(vocab)
        return self.weights if ids is None else {**self.weights, "draft_ids": ids}


def require_width(layer: Fields, width: int, target: ModelConfig) -> None:
    """Refuse a drafter that was made for another hidden size."""
    if width != target.hidden_size:
        raise layer.fail(
            "hidden_size",
            f"the drafter was made for a target of hidden size {width}, "
            f"this one has {target.hidden_size}",
        )


def head_counts(layer: Fields) -> tuple[int, int]:
    """(query heads, key-value heads)."""
    heads = at_least(1, layer, "num_attention_heads")
    kv = at_least(1, layer, "num_key_value_heads", heads)
    if heads % kv:
        raise layer.fail("num_key_value_heads", f"{kv} does not divide {heads} heads")
    return heads, kv


def at_least(least: int, fields: Fields, key: str, default: int | None = None) -> int:
    """An integer of the config that must not be smaller."""
    value = fields.integer(key, default)
    if value < least:
        raise fields.fail(key, f"{value} is less than {least}")
    return value


def draft_ids(
    where: Path, d2t: Tensor | None, t2d: Tensor | None, *, vocab: int, draft_vocab: int
) -> Tensor | None:
    """(draft_vocab,) int64 absolute target ids, or None if the drafter speaks all of them.

    `d2t[j]` is published as the offset id(j) - j, by some converters as id(j) itself; `t2d`
    marks the chosen ids, which the drafter numbers in ascending order, so it tells the two
    apart. Without it the published form (offset) is taken if it makes sense.
    Raises CheckpointError where neither reading gives distinct ids of the target.
    """
    if draft_vocab > vocab:
        raise CheckpointError(where, f"draft vocabulary {draft_vocab} exceeds the target's {vocab}")
    if d2t is None and t2d is None and draft_vocab == vocab:
        return None
    identity = torch.arange(draft_vocab)
    chosen = None if t2d is None else _chosen(where, t2d, vocab=vocab, draft_vocab=draft_vocab)
    if d2t is None:
        if chosen is None:
            raise CheckpointError(
                where, f"lacks tensor 'd2t' for its vocabulary of {draft_vocab} tokens"
            )
        ids = chosen
    else:
        if tuple(d2t.shape) != (draft_vocab,) or d2t.is_floating_point():
            raise CheckpointError(where, f"tensor 'd2t' is not {draft_vocab} integers")
        readings = (identity + d2t.long(), d2t.long())
        found = [ids for ids in readings if _fits(ids, chosen, vocab)]
        if not found:
            raise CheckpointError(
                where, "tensor 'd2t' is neither offsets nor ids that agree with the target's ids"
            )
        ids = found[0]
    return None if draft_vocab == vocab and torch.equal(ids, identity) else ids


def _chosen(where: Path, t2d: Tensor, *, vocab: int, draft_vocab: int) -> Tensor:
    if tuple(t2d.shape) != (vocab,):
        raise CheckpointError(
            where, f"tensor 't2d' has shape {list(t2d.shape)}, its target's vocabulary is {vocab}"
        )
    chosen = torch.nonzero(t2d)[:, 0]
    if len(chosen) != draft_vocab:
        raise CheckpointError(
            where, f"tensor 't2d' marks {len(chosen)} tokens, the draft vocabulary is {draft_vocab}"
        )
    return chosen


def _fits(ids: Tensor, chosen: Tensor | None, vocab: int) -> bool:
    if chosen is not None:
        return torch.equal(ids, chosen)
    inside = bool((ids >= 0).all()) and bool((ids < vocab).all())
    return inside and len(torch.unique(ids)) == len(ids)
