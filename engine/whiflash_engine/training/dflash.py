"""Train a DFlash drafter on a corpus: random anchors, soft targets, decaying row weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.errors import ConfigError
from whiflash_engine.training.dflash_model import DFlash, warm_start
from whiflash_engine.training.drafter_parts import Batch, epoch_batches, make_batch
from whiflash_engine.training.drafter_run import (
    DrafterOptions,
    Material,
    acceptance,
    load_material,
    make_optimisers,
    run_settings,
)
from whiflash_engine.training.drafting_loss import Rows, frozen_head_loss
from whiflash_engine.training.eagle3 import teacher_table
from whiflash_engine.training.loop import Report, train
from whiflash_engine.training.model_files import write_json, write_tensors


@dataclass(frozen=True)
class DFlashOptions(DrafterOptions):
    block: int = 8
    layers: int = 3
    anchors: int = 64
    """Anchors per response and visit, drawn anew every time."""
    gamma: float = 4.0
    """Row k weighs exp(-(k-1)/gamma); 4 is the paper's value for blocks of 8."""
    mask_token: int = 4
    warm_layers: tuple[int, ...] = (-5, -3, -1)
    """Target layers that the drafter's layers start from; negative ones count from the end."""
    evaluate_seconds: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.warm_layers) != self.layers:
            raise ConfigError("warm_layers", self.warm_layers, f"{self.layers} are needed")
        if self.block < 2:
            raise ConfigError("block", self.block, "should be at least 2")


class DFlashTrainee:
    def __init__(self, options: DFlashOptions, material: Material) -> None:
        torch.manual_seed(options.seed)
        self.options, self.material = options, material
        self.taps = material.train.taps
        self.drafter = DFlash(material.shape, layers=options.layers, taps=len(self.taps))
        sample = material.train.samples[0]
        depth = material.target.shape.num_hidden_layers
        warm_layers = tuple(layer % depth for layer in options.warm_layers)
        warm_start(
            self.drafter, material.target, layers=warm_layers,
            last_tap=min(self.taps[-1], depth - 1),
            ids=torch.tensor([sample.prompt + sample.response]), seed=options.seed,
        )  # fmt: skip
        self._optimisers = make_optimisers(self.drafter, options)
        self.batches = [
            batch
            for epoch in range(options.epochs)
            for batch in epoch_batches(material.samples, options.batch, options.seed, epoch)
        ]
        self.draft_of = material.vocab.draft_of
        self.mask = material.embed(torch.tensor(options.mask_token))
        self.settings: Mapping[str, object] = run_settings(
            options, material,
            {"block": options.block, "layers": options.layers, "anchors": options.anchors,
             "gamma": options.gamma, "mask_token": options.mask_token,
             "warm_layers": list(warm_layers)},
        )  # fmt: skip

    def trained(self) -> Mapping[str, nn.Parameter]:
        return dict(self.drafter.named_parameters())

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        return self._optimisers

    def loss(self, step: int) -> tuple[Tensor, int]:
        options = self.options
        batch = make_batch(self.material.train, self.batches[step], self.material.dtype)
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        anchors, real = draw_anchors(batch, options.anchors, generator)
        states, tokens, valid = self.blocks(batch, anchors, real)
        use = valid & (self.draft_of[tokens] >= 0)
        table, offsets = teacher_table(batch, self.material.head)
        ahead = torch.arange(1, options.block)
        # row k predicts x_{a+k}; the target's distribution for it stands at position a+k-1
        index = offsets[:, None, None] + anchors[:, :, None] + ahead - 1
        weight = torch.exp(-(ahead - 1) / options.gamma).expand(use.shape)
        loss = frozen_head_loss(
            states[use], self.material.head, Rows(table, index[use], weight[use])
        )
        return loss, int(valid.sum())

    def blocks(self, batch: Batch, anchors: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed states [B,A,block-1,H] of the masked rows, the tokens there [B,A,block-1], and
        which of them exist."""
        block = self.options.block
        count = anchors.shape[1]
        rows = self.mask.expand(len(anchors), count, block, -1).clone()
        rows[:, :, 0] = self.material.embed(torch.gather(batch.ids, 1, anchors))
        states = self.drafter(batch.taps, rows, anchors)[:, :, 1:]
        places = anchors[:, :, None] + torch.arange(1, block)
        last = torch.tensor(batch.positions)[:, None, None]
        valid = (places <= last) & real[:, :, None]
        flat = places.clamp_max(batch.ids.shape[1] - 1).flatten(1)
        return states, torch.gather(batch.ids, 1, flat).view(places.shape), valid

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        hits: list[tuple[str, Tensor]] = []
        for start in range(0, len(self.material.held_out), 4):
            samples = self.material.held_out[start : start + 4]
            batch = make_batch(self.material.dev, samples, self.material.dtype)
            anchors, real = every_anchor(batch)
            states, tokens, valid = self.blocks(batch, anchors, real)
            best = F.linear(states, self.material.head).argmax(-1)
            hit = (self.material.vocab.ids[best] == tokens) & valid
            hits += [(sample.kind, hit[row][real[row]]) for row, sample in enumerate(samples)]
        return acceptance(hits)

    def export(self) -> None:
        material, shape, options = self.material, self.material.shape, self.options
        tensors = {name: value.bfloat16() for name, value in self.trained().items()}
        tensors["lm_head.weight"] = material.head.bfloat16()
        tensors["d2t"], tensors["t2d"] = material.vocab.d2t, material.vocab.t2d
        write_tensors(options.output / "model.safetensors", tensors)
        write_json(
            options.output / "config.json",
            {
                "architectures": ["DFlashDraftModel"],
                "model_type": "qwen3",
                "block_size": options.block,
                "dflash_config": {
                    "mask_token_id": options.mask_token,
                    "target_layer_ids": [tap - 1 for tap in self.taps],
                },
                "num_target_layers": material.target.shape.num_hidden_layers,
                "num_hidden_layers": options.layers,
                "layer_types": ["full_attention"] * options.layers,
                "hidden_size": shape.hidden_size,
                "intermediate_size": shape.intermediate_size,
                "num_attention_heads": shape.num_attention_heads,
                "num_key_value_heads": shape.num_key_value_heads,
                "head_dim": shape.head_dim,
                "hidden_act": "silu",
                "attention_bias": False,
                "rms_norm_eps": shape.rms_norm_eps,
                "rope_theta": shape.rope_theta,
                "rope_scaling": None,
                "max_position_embeddings": shape.max_position_embeddings,
                "vocab_size": shape.vocab_size,
                "draft_vocab_size": shape.draft_vocab_size,
                "tie_word_embeddings": False,
                "torch_dtype": "bfloat16",
            },
        )


def draw_anchors(batch: Batch, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """int64 [B,A] distinct anchors per row among its response positions, and bool [B,A]: real
    ones (a short response has fewer; the rest is padding)."""
    lengths = [end - start for start, end in zip(batch.starts, batch.positions, strict=True)]
    width = min(count, max(lengths))
    anchors = torch.ones(len(lengths), width, dtype=torch.long)
    real = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(batch.starts, lengths, strict=True)):
        drawn = torch.randperm(length, generator=generator)[:width] + start
        anchors[row, : len(drawn)] = drawn
        real[row, : len(drawn)] = True
    return anchors, real


def every_anchor(batch: Batch) -> tuple[Tensor, Tensor]:
    """All response positions as anchors, in the form of `draw_anchors`."""
    lists = [
        torch.arange(start, end) for start, end in zip(batch.starts, batch.positions, strict=True)
    ]
    anchors = torch.ones(len(lists), max(map(len, lists)), dtype=torch.long)
    real = torch.zeros_like(anchors, dtype=torch.bool)
    for row, places in enumerate(lists):
        anchors[row, : len(places)] = places
        real[row, : len(places)] = True
    return anchors, real


def train_dflash(options: DFlashOptions, report: Report) -> None:
    material = load_material(options)
    report({"draft_vocab": options.draft_vocab, "coverage": round(material.coverage, 4)})
    trainee = DFlashTrainee(options, material)
    report(dict(trainee.evaluate()))
    train(trainee, options.loop(len(trainee.batches)), options.run, report)
