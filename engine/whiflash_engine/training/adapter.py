"""Train the LoRA adapter that teaches a small chat model to call tools."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.checkpoints.lora import merge_lora, read_lora
from whiflash_engine.training.adapter_data import AdapterMix, LessonBuilder, tokenise
from whiflash_engine.training.adapter_eval import evaluate_adapter
from whiflash_engine.training.chat import HubTokenizer, Taught
from whiflash_engine.training.composed_words import SMALL_TALK
from whiflash_engine.training.generate import BatchGenerator, Job
from whiflash_engine.training.llama import Llama, load_llama
from whiflash_engine.training.loop import LoopOptions, Report, train
from whiflash_engine.training.lora import (
    LoraConfig,
    LoraLinear,
    adapter_tensors,
    inject,
    load_adapter_tensors,
    save_adapter,
)
from whiflash_engine.training.model_files import (
    fingerprint,
    read_tensors,
    write_json,
    write_tensors,
)
from whiflash_engine.training.rows import PromptRow, load_rows


@dataclass(frozen=True)
class AdapterOptions:
    model: Path
    """Folder of the untouched model."""
    data: Path
    run: Path
    """Checkpoints and the learning curve; a second start with the same folder goes on there."""
    output: Path
    template: Path
    start: Path | None = None
    """Adapter folder to go on from; None starts a new one."""
    base_name: str = "SmolLM2-135M-Instruct"
    lora: LoraConfig = field(default_factory=LoraConfig)
    mix: AdapterMix = field(default_factory=AdapterMix)
    learning_rate: float = 5e-4
    batch: int = 8
    epochs: int = 1
    minutes: float | None = None
    seed: int = 0


class AdapterTrainee:
    """Loss on the assistant's tokens only; logits are computed at those positions alone."""

    def __init__(self, options: AdapterOptions, model: Llama, lessons: Sequence[Taught]) -> None:
        torch.manual_seed(options.seed)
        self.options, self.model = options, model
        parameters = inject(model, options.lora)
        if options.start is not None:
            load_adapter_tensors(model, read_tensors(options.start / "adapter_model.safetensors"))
        self._optimiser = torch.optim.AdamW(
            parameters, lr=options.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)
        )
        self.batches = _batches(lessons, options.batch, options.epochs, options.seed)
        self.settings: Mapping[str, object] = {
            "base": fingerprint(options.model), "lora": asdict(options.lora),
            "mix": asdict(options.mix), "seed": options.seed, "batch": options.batch,
            "epochs": options.epochs, "learning_rate": options.learning_rate,
            "start": None if options.start is None else fingerprint(options.start),
        }  # fmt: skip

    def trained(self) -> Mapping[str, nn.Parameter]:
        return {
            f"{name}.{part}": parameter
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLinear)
            for part, parameter in (("lora_A", module.lora_A), ("lora_B", module.lora_B))
        }

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"adamw": self._optimiser}

    def loss(self, step: int) -> tuple[Tensor, int]:
        batch = self.batches[step]
        width = max(len(one.ids) for one in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        learn = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            learn[row, : len(one.ids)] = torch.tensor(one.learn)
        hidden = self.model(ids[:, :-1])[learn[:, 1:]]
        logits = F.linear(hidden, self.model.head_weight).float()
        return F.cross_entropy(logits, ids[:, 1:][learn[:, 1:]]), len(logits)

    def evaluate(self) -> Mapping[str, float]:
        return {}

    def export(self) -> None:
        save_adapter(
            self.options.output, adapter_tensors(self.model), self.options.lora,
            self.options.base_name,
        )  # fmt: skip


def _batches(lessons: Sequence[Taught], size: int, epochs: int, seed: int) -> list[list[Taught]]:
    """Batches of similar length (little padding), in random order."""
    rng = random.Random(seed)
    batches: list[list[Taught]] = []
    for _ in range(epochs):
        order = list(lessons)
        rng.shuffle(order)
        for start in range(0, len(order), size * 16):
            pool = sorted(order[start : start + size * 16], key=lambda one: len(one.ids))
            packs = [pool[i : i + size] for i in range(0, len(pool), size)]
            rng.shuffle(packs)
            batches += packs
    return batches


def plain_replies(
    options: AdapterOptions, model: Llama, tokenizer: HubTokenizer
) -> list[tuple[PromptRow, str]]:
    """Chat prompts answered by the untouched model, so that the adapter keeps its manner.

    Kept beside the checkpoints: they are computed once a run folder.
    """
    rng = random.Random(options.seed)
    rows = [
        row
        for source in ("dolly", "self_instruct", "nq_open", "oasst_prompts")
        for row in load_rows(options.data, "train", source)
        if len(json.dumps(row.messages)) < 500
    ]
    picked = rng.sample(rows, min(options.mix.plain, len(rows)))
    if options.mix.small_talk:
        picked += [
            PromptRow(
                f"small_talk-{i}", "chat", "small_talk", ({"role": "user", "content": text},), ()
            )
            for i, text in enumerate(SMALL_TALK)
        ]
    path = options.run / "plain_replies.json"
    if not path.exists():
        jobs = [
            Job(row.id, tuple(tokenizer.encode(tokenizer.render(row.messages, ()))), 96)
            for row in picked
        ]
        generator = BatchGenerator(
            model, slots=32, length=512, stop_ids=frozenset({tokenizer.stop_id}), seed=options.seed
        )
        replies = {
            answer.job.key: tokenizer.decode(answer.tokens[:-1])
            for answer in generator.run(jobs)
            if answer.tokens[-1]
            == tokenizer.stop_id  # a reply cut short would teach stopping early
        }
        write_json(path, replies)
    saved: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return [(row, saved[row.id]) for row in picked if row.id in saved]


def train_adapter(options: AdapterOptions, report: Report) -> None:
    model = load_llama(options.model)
    tokenizer = HubTokenizer(options.model, options.template)
    plain = plain_replies(options, model, tokenizer)
    lessons = LessonBuilder(options.data, "train", options.mix, options.seed).build(plain)
    taught, kept = tokenise(lessons, tokenizer, options.mix)
    report({"conversations": str(len(taught)), **{kind: str(n) for kind, n in kept.items()}})
    trainee = AdapterTrainee(options, model, taught)
    loop = LoopOptions(steps=len(trainee.batches), minutes=options.minutes, report_every=5)
    train(trainee, loop, options.run, report)


def measure_adapter(options: AdapterOptions, report: Report) -> None:
    """Tool calls of the untouched and of the adapted model on held-out rows."""
    merged = options.run / "merged"
    weights = merge_lora(read_lora(options.output), read_tensors(options.model))
    write_tensors(merged / "model.safetensors", weights)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (merged / name).write_bytes((options.model / name).read_bytes())
    for label, folder in (("before", options.model), ("after", merged)):
        for kind, values in evaluate_adapter(folder, options.template, options.data).items():
            report({"model": label, "kind": kind, **values})
