"""What a drafter's training run needs besides its model: options, target pieces, vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from whiflash_engine.checkpoints.tensors import read_file
from whiflash_engine.config import require
from whiflash_engine.devices import choose_dtype
from whiflash_engine.errors import CheckpointError
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.corpus import Corpus, Sample
from whiflash_engine.training.drafter_parts import Batch, DrafterShape, make_batch
from whiflash_engine.training.llama import Llama, load_llama
from whiflash_engine.training.loop import LoopOptions
from whiflash_engine.training.model_files import fingerprint
from whiflash_engine.training.optim import Muon
from whiflash_engine.training.vocab import DraftVocab, always_needed, choose_vocab


@dataclass(frozen=True)
class DrafterOptions:
    model: Path
    """The target's folder; the corpus must have been made with it."""
    corpus: Path
    run: Path
    output: Path
    start: Path | None = None
    """Folder of a drafter to go on from, of this target or of an earlier one; None starts from
    the target's own layers."""
    draft_vocab: int = 8192
    epochs: int = 4
    minutes: float | None = None
    batch: int = 8
    muon_rate: float = 5e-3
    adam_rate: float = 1e-3
    optimiser: Literal["muon", "adamw"] = "muon"
    """What trains the matrices; the vectors are always AdamW's."""
    targets: Literal["soft", "hard"] = "soft"
    """What a draft is compared with: the target's distribution, or the token that followed."""
    seed: int = 0
    float32: bool = False
    """Compute in float32 also where the device is fast at bfloat16."""
    checkpoint_seconds: float = 180.0
    evaluate_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("draft_vocab", "epochs", "batch"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "should be at least 1")
        for name, known in (("optimiser", ("muon", "adamw")), ("targets", ("soft", "hard"))):
            value = getattr(self, name)
            require(value in known, name, value, f"must be one of {', '.join(known)}")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.float32 else choose_dtype(None, torch.get_default_device())

    def loop(self, steps: int) -> LoopOptions:
        return LoopOptions(
            steps=steps, minutes=self.minutes, checkpoint_seconds=self.checkpoint_seconds,
            evaluate_seconds=self.evaluate_seconds,
        )  # fmt: skip


@dataclass(frozen=True)
class Material:
    """The frozen side: target, corpus, vocabulary."""

    target: Llama
    train: Corpus
    dev: Corpus
    vocab: DraftVocab
    coverage: float
    """Share of the held-out response tokens that can be drafted: those of the vocabulary, and
    those that stand earlier in the text."""
    shape: DrafterShape
    head: Tensor
    """[Vd,H]: the target's head rows of the draft vocabulary."""
    dtype: torch.dtype

    @property
    def samples(self) -> list[Sample]:
        """Responses long enough to have something to draft."""
        return [sample for sample in self.train.samples if len(sample.response) >= 3]

    @property
    def held_out(self) -> list[Sample]:
        """Greedy responses only: there the target's choice is the text itself."""
        return [s for s in self.dev.samples if s.temperature == 0 and len(s.response) >= 3]

    def batch(self, corpus: Corpus, samples: Sequence[Sample]) -> Batch:
        return make_batch(corpus, samples, self.dtype, self.target)

    def words(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The vocabulary for one batch: the draft vocabulary, and behind it the other tokens of
        the batch, as a running drafter adds those of its text (`drafters.vocabulary`).

        Head rows [Vd+n,H], and the target ids int64 [Vd+n] that they stand for.
        """
        met = torch.unique(batch.ids)
        more = met[self.vocab.draft_of[met] < 0]
        head = torch.cat([self.head, self.target.head_weight[more].to(self.dtype)])
        return head, torch.cat([self.vocab.ids, more])

    def sayable(self, ids: Tensor) -> Tensor:
        """bool [B,T] for int64 ids [B,T]: in the draft vocabulary, or earlier in the row?"""
        earlier = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(-1)
        return earlier | (self.vocab.draft_of[ids] >= 0)

    def embed(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.target.embed_tokens.weight).to(self.dtype)


def load_material(options: DrafterOptions) -> Material:
    train, dev = Corpus(options.corpus, "train"), Corpus(options.corpus, "dev")
    train.require_target(options.model)
    target = load_llama(options.model, options.dtype)
    tokenizer = HubTokenizer(options.model)
    written, seen = train.token_counts()
    texts = [tokenizer.decode([token]) for token in range(target.config.vocab_size)]
    needed = always_needed(texts, tokenizer.inner.all_special_ids)
    vocab = choose_vocab(
        written, seen, needed, size=options.draft_vocab, vocab_size=target.config.vocab_size
    )
    config = target.config
    return Material(
        target=target,
        train=train,
        dev=dev,
        vocab=vocab,
        coverage=vocab.coverage(dev.samples),
        shape=DrafterShape(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope.theta,
            vocab_size=config.vocab_size,
            draft_vocab_size=options.draft_vocab,
            max_position_embeddings=config.max_positions,
        ),
        head=target.head_weight[vocab.ids].to(options.dtype),
        dtype=options.dtype,
    )


def go_on_from(model: nn.Module, folder: Path) -> None:
    """Copy an exported drafter's weights into `model`. What it trains does not depend on the
    draft vocabulary, so that may differ. CheckpointError if a name or a shape does."""
    saved = read_file(folder / "model.safetensors")
    wanted = dict(model.named_parameters())
    for name, parameter in wanted.items():
        found = saved.get(name)
        if found is None or found.shape != parameter.shape:
            shape = None if found is None else tuple(found.shape)
            raise CheckpointError(
                folder / "model.safetensors",
                f"{name!r} has shape {shape}, {tuple(parameter.shape)} is needed to go on from it",
            )
    extra = saved.keys() - wanted.keys() - {"lm_head.weight", "d2t", "t2d"}
    if extra:
        raise CheckpointError(folder / "model.safetensors", f"has more tensors: {sorted(extra)}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])


def make_optimisers(model: nn.Module, options: DrafterOptions) -> dict[str, torch.optim.Optimizer]:
    """Muon for matrices, if it is wanted, and AdamW for the rest."""
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2] if options.optimiser == "muon" else []
    taken = set(map(id, matrices))
    adamw = torch.optim.AdamW(
        [p for p in parameters if id(p) not in taken], lr=options.adam_rate,
        betas=(0.9, 0.95), weight_decay=0.0,
    )  # fmt: skip
    if not matrices:
        return {"adamw": adamw}
    return {"muon": Muon(matrices, lr=options.muon_rate), "adamw": adamw}


def run_settings(
    options: DrafterOptions, material: Material, extra: Mapping[str, object]
) -> dict[str, object]:
    """What a checkpoint must agree with before it is continued."""
    return {
        "target": material.train.target, "samples": len(material.train.samples),
        "draft_vocab": options.draft_vocab, "batch": options.batch, "seed": options.seed,
        "epochs": options.epochs, "muon_rate": options.muon_rate,
        "adam_rate": options.adam_rate, "optimiser": options.optimiser,
        "targets": options.targets,
        "start": None if options.start is None else fingerprint(options.start), **extra,
    }  # fmt: skip


def acceptance(hits: Sequence[tuple[str, Tensor]]) -> dict[str, float]:
    """Simulated acceptance length: tokens per round, bonus counted, per kind and on average.

    `hits`, one per response: (kind, bool [starts, depth]): was the k-th draft of a round whose
    bonus token is response token `start` the target's greedy choice? The rounds are walked
    through as decoding would: the next one starts where the last one ended. (A mean over all
    starts would flatter: easy stretches hold many starts and few rounds.)
    `first`: share of starts whose first draft is right.
    """
    tokens: Counter[str] = Counter()
    rounds: Counter[str] = Counter()
    for kind, hit in hits:
        lengths = (1 + hit.long().cumprod(-1).sum(-1)).tolist()
        start = 0
        while start < len(lengths):
            start += lengths[start]
            rounds[kind] += 1
        tokens[kind] += len(lengths)
    result = {f"al_{kind}": round(tokens[kind] / rounds[kind], 4) for kind in sorted(rounds)}
    result["al"] = round(sum(result.values()) / max(len(result), 1), 4)
    firsts = [float(hit[:, 0].float().sum()) for _, hit in hits]
    result["first"] = round(sum(firsts) / max(sum(tokens.values()), 1), 4)
    return result
