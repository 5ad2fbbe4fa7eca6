"""Train the LoRA adapter that teaches a small chat model to call tools."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.checkpoints.lora import merge_lora, read_lora
from whiflash_engine.checkpoints.tensors import read_file, read_folder
from whiflash_engine.checkpoints.unpack import TEMPLATE
from whiflash_engine.training.adapter_data import LessonBuilder
from whiflash_engine.training.batching import epoch_batches
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.lessons import tokenise
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
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.model_files import (
    fingerprint,
    write_tensors,
)
from whiflash_engine.training.own_replies import OwnReplies
from whiflash_engine.training.packing import Pack, pad
from whiflash_engine.training.tool_groups import tool_groups


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
    opening: float = 1.0
    """Weight of a reply's first two tokens: they decide between calling, thinking and talking,
    and are few among many."""
    batch: int = 8
    epochs: int = 1
    """Each draws its lessons anew: other tools on offer, other loops, and other rows where the mix
    takes some of a source."""
    minutes: float | None = None
    seed: int = 0


class AdapterTrainee:
    """Loss on the assistant's tokens only; logits are computed at those positions alone."""

    def __init__(
        self, options: AdapterOptions, model: Llama, draw: Callable[[int], Sequence[Pack]]
    ) -> None:
        """draw: an epoch's sequences, about as many in every epoch; asked when it begins."""
        torch.manual_seed(options.seed)
        self.options, self.model = options, model
        parameters = inject(model, options.lora)
        if options.start is not None:
            load_adapter_tensors(model, read_file(options.start / "adapter_model.safetensors"))
        self._optimiser = torch.optim.AdamW(
            parameters, lr=options.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)
        )
        self._draw = draw
        self._epoch, self._batches = 0, self._begun(0)
        self._per_epoch = len(self._batches)
        self.settings: Mapping[str, object] = {
            "base": fingerprint(options.model), "lora": asdict(options.lora),
            "mix": asdict(options.mix), "seed": options.seed, "batch": options.batch,
            "epochs": options.epochs, "learning_rate": options.learning_rate,
            "opening": options.opening,
            "start": None if options.start is None else fingerprint(options.start),
        }  # fmt: skip

    @property
    def steps(self) -> int:
        return self._per_epoch * self.options.epochs

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
        ids, learn, layout = pad(self.batch(step))
        hidden = self.model(ids, layout)[:, :-1][learn[:, 1:]]
        logits = F.linear(hidden, self.model.head_weight).float()
        losses = F.cross_entropy(logits, ids[:, 1:][learn[:, 1:]], reduction="none")
        weights = opening_weights(learn, self.options.opening)[:, 1:][learn[:, 1:]]
        return (losses * weights).sum() / weights.sum(), len(logits)

    def batch(self, step: int) -> list[Pack]:
        epoch, place = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._begun(epoch)
        return self._batches[place % len(self._batches)]  # a later epoch may have one less

    def _begun(self, epoch: int) -> list[list[Pack]]:
        options = self.options
        return epoch_batches(self._draw(epoch), options.batch, options.seed, epoch, _length)

    def evaluate(self) -> Mapping[str, float]:
        return {}

    def export(self) -> None:
        save_adapter(
            self.options.output, adapter_tensors(self.model), self.options.lora,
            self.options.base_name,
        )  # fmt: skip


def opening_weights(learn: Tensor, opening: float) -> Tensor:
    """bool [B,T] of learned tokens -> float32 weights: `opening` for the first two of each run."""
    before = F.pad(learn, (2, 0))
    early = learn & ~(before[:, 1:-1] & before[:, :-2])
    return torch.where(early, opening, 1.0)


def _length(pack: Pack) -> tuple[int, ...]:
    return (len(pack.ids),)


def train_adapter(options: AdapterOptions, report: Report) -> None:
    model = load_llama(options.model)
    tokenizer = HubTokenizer(options.model, options.template)
    own = OwnReplies(options.data, options.run, model, tokenizer, options.seed)

    def draw(epoch: int) -> list[Pack]:
        packs, kept = draw_lessons(options, epoch, own, tokenizer)
        counts = {"conversations": kept.total(), "sequences": len(packs), **kept}
        report({"epoch": epoch + 1, **{name: str(count) for name, count in counts.items()}})
        return packs

    trainee = AdapterTrainee(options, model, draw)
    loop = LoopOptions(steps=trainee.steps, minutes=options.minutes, report_every=5)
    train(trainee, loop, options.run, report)


def draw_lessons(
    options: AdapterOptions, epoch: int, own: OwnReplies, tokenizer: HubTokenizer
) -> tuple[list[Pack], Counter[str]]:
    """One epoch's sequences, and how many conversations of each kind they hold."""
    seed = options.seed + 1_000_003 * epoch
    lessons = LessonBuilder(options.data, "train", options.mix, seed).build(own)
    groups = tool_groups(options.data, "train", options.mix, seed)
    return tokenise([*([one] for one in lessons), *groups], tokenizer, options.mix)


def merge_adapter(model: Path, adapter: Path, template: Path, output: Path) -> None:
    """Write the model with the adapter folded in: what drafters are trained for."""
    weights = merge_lora(read_lora(adapter), read_folder(model))
    write_tensors(output / "model.safetensors", weights)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, output / name)
    shutil.copyfile(template, output / TEMPLATE)
