"""Train an EAGLE-3 head on a corpus: training-time test with soft targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.errors import ConfigError
from whiflash_engine.training.corpus import Sample
from whiflash_engine.training.drafter_parts import Batch, drafter_batches
from whiflash_engine.training.drafter_run import (
    DrafterOptions,
    Material,
    acceptance,
    go_on_from,
    load_material,
    make_optimisers,
    run_settings,
)
from whiflash_engine.training.drafting_loss import Rows, frozen_head_loss, teacher_probabilities
from whiflash_engine.training.eagle3_model import Eagle3, warm_start
from whiflash_engine.training.loop import Report, train
from whiflash_engine.training.model_files import write_json, write_tensors


@dataclass(frozen=True)
class Eagle3Options(DrafterOptions):
    aux: tuple[int, ...] | None = None
    """Boundary indices, low to high; None takes first, middle and last of the corpus's taps."""
    steps: int = 5
    """Training-time-test steps."""
    decay: float = 0.8
    """Weight of step i is decay^i."""
    warm_layer: int = -1
    """Target layer that the head starts from."""


class Eagle3Trainee:
    def __init__(self, options: Eagle3Options, material: Material) -> None:
        torch.manual_seed(options.seed)
        self.options, self.material = options, material
        taps = material.train.taps
        self.aux = options.aux or (taps[0], taps[len(taps) // 2], taps[-1])
        missing = set(self.aux) - set(taps)
        if missing:
            raise ConfigError("aux", self.aux, f"the corpus has no tap {sorted(missing)}")
        self.slices = [taps.index(tap) for tap in self.aux]
        self.head = Eagle3(material.shape, len(self.aux))
        if options.start is None:
            layer = options.warm_layer % material.target.config.num_layers
            warm_start(self.head, material.target, layer=layer, seed=options.seed)
        else:
            go_on_from(self.head, options.start)
        self._optimisers = make_optimisers(self.head, options)
        self.batches = drafter_batches(
            material.samples, options.batch, options.seed, options.epochs
        )
        self.settings: Mapping[str, object] = run_settings(
            options, material,
            {"aux": list(self.aux), "steps": options.steps, "decay": options.decay},
        )  # fmt: skip

    def trained(self) -> Mapping[str, nn.Parameter]:
        return dict(self.head.named_parameters())

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        return self._optimisers

    def loss(self, step: int) -> tuple[Tensor, int]:
        batch = self.material.batch(self.material.train, self.batches[step])
        rows, valid = training_rows(batch, self.options.steps)
        states = self.states(batch, rows)
        head, words = self.material.words(batch)
        hard = self.options.targets == "hard"
        table, offsets = teacher_table(batch, head, words, hard=hard)
        hidden, index, weight = [], [], []
        for i, state in enumerate(states):
            # step i at slot t predicts x_{t+2+i}, the target's row for it is position t+1+i
            hidden.append(state[valid[i]])
            index.append((offsets[:, None] + rows + 1 + i)[valid[i]])
            weight.append(torch.full((len(index[-1]),), self.options.decay**i))
        joined = torch.cat(weight)
        normed = self.head.norm(torch.cat(hidden))
        loss = frozen_head_loss(normed, head, Rows(table, torch.cat(index), joined))
        return loss, int(valid[0].sum())

    def states(self, batch: Batch, rows: Tensor) -> list[Tensor]:
        """States of all steps at `rows`; real tokens are fed (teacher forcing)."""
        taps = batch.taps[:, :-1, self.slices]
        embedded = [self.material.embed(batch.ids[:, 1:-1])]
        embedded += [
            self.material.embed(_take(batch.ids, rows + 1 + i))
            for i in range(1, self.options.steps)
        ]
        return self.head.unroll(taps, embedded, rows)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        hits: list[tuple[str, Tensor]] = []
        for start in range(0, len(self.material.held_out), 4):
            samples: Sequence[Sample] = self.material.held_out[start : start + 4]
            batch = self.material.batch(self.material.dev, samples)
            rows, valid = training_rows(batch, self.options.steps)
            head, words = self.material.words(batch)
            sayable = self.material.sayable(batch.ids)
            found = []
            for i, state in enumerate(self.states(batch, rows)):
                best = F.linear(self.head.norm(state), head).argmax(-1)
                places = rows + 2 + i
                hit = (words[best] == _take(batch.ids, places)) & valid[i]
                found.append(hit & _take(sayable, places))
            for row, sample in enumerate(samples):
                hits.append((sample.kind, torch.stack(found, -1)[row][valid[0][row]]))
        return acceptance(hits)

    def export(self) -> None:
        material, shape = self.material, self.material.shape
        tensors = {name: value.bfloat16() for name, value in self.trained().items()}
        tensors["d2t"], tensors["t2d"] = material.vocab.d2t, material.vocab.t2d
        write_tensors(self.options.output / "model.safetensors", tensors)
        write_json(
            self.options.output / "config.json",
            {
                "architectures": ["LlamaForCausalLMEagle3"],
                "model_type": "llama",
                "hidden_size": shape.hidden_size,
                "target_hidden_size": shape.hidden_size,
                "intermediate_size": shape.intermediate_size,
                "num_hidden_layers": 1,
                "num_attention_heads": shape.num_attention_heads,
                "num_key_value_heads": shape.num_key_value_heads,
                "head_dim": shape.head_dim,
                "hidden_act": "silu",
                "rms_norm_eps": shape.rms_norm_eps,
                "rope_theta": shape.rope_theta,
                "rope_scaling": None,
                "max_position_embeddings": shape.max_position_embeddings,
                "vocab_size": shape.vocab_size,
                "draft_vocab_size": shape.draft_vocab_size,
                "tie_word_embeddings": False,
                "norm_before_residual": False,
                "eagle_aux_hidden_state_layer_ids": list(self.aux),
                "torch_dtype": "bfloat16",
            },
        )


def training_rows(batch: Batch, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Slots to train, int64 [B,R], and per step which of them have a token to predict.

    A chain may start wherever the bonus token is a response token, at slots
    start-1 .. positions-2; padding repeats the last one.
    """
    counts = [end - start for start, end in zip(batch.starts, batch.positions, strict=True)]
    offset = torch.arange(max(counts))
    first, last = torch.tensor(batch.starts) - 1, torch.tensor(batch.positions) - 2
    rows = first[:, None] + offset
    valid = [rows <= last[:, None] - i for i in range(steps)]
    return rows.minimum(last[:, None]), valid


def teacher_table(
    batch: Batch, head: Tensor, words: Tensor, *, hard: bool = False
) -> tuple[Tensor, Tensor]:
    """Target distributions at all response positions, one under the other, and int64 [B]
    offsets: the row for position p of sample b is offsets[b] + p.

    Where a grammar overruled the target, the token that was written has all the probability:
    under the grammar the target would give it nearly all; hard: so it has everywhere.
    head, words: of `Material.words`.
    """
    pieces: list[Tensor] = []
    offsets: list[int] = []
    overruled: list[tuple[int, int, int]] = []
    total = 0
    for row, (start, end) in enumerate(zip(batch.starts, batch.positions, strict=True)):
        pieces.append(batch.last[row, start:end])
        offsets.append(total - start)
        # response token i stands at start + i, and the row of the position before predicts it
        decided = range(end - start + 1) if hard else batch.overruled[row]
        overruled += [(total + i - 1, start + i, row) for i in decided if i > 0]
        total += end - start
    table = teacher_probabilities(torch.cat(pieces), head)
    if overruled:
        places, positions, rows = torch.tensor(overruled).unbind(1)
        table[places] = (words == batch.ids[rows, positions][:, None]).to(table.dtype)
    return table, torch.tensor(offsets)


def _take(ids: Tensor, places: Tensor) -> Tensor:
    """[B,T] at places [B,R]; places beyond the end give the last one (masked anyway)."""
    return torch.gather(ids, 1, places.clamp_max(ids.shape[1] - 1))


def train_eagle3(options: Eagle3Options, report: Report) -> None:
    material = load_material(options)
    report({"draft_vocab": options.draft_vocab, "coverage": round(material.coverage, 4)})
    trainee = Eagle3Trainee(options, material)
    train(trainee, options.loop(len(trainee.batches)), options.run, report)
