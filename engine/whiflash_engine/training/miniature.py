"""All steps of training one after the other, small: adapter, merge, corpus, both drafters.

It shows that the recipe works from end to end; the weights it makes are toys. Every step goes
on where it was when the command is started again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from whiflash_engine.checkpoints.unpack import TEMPLATE
from whiflash_engine.errors import ConfigError
from whiflash_engine.training.adapter import AdapterOptions, merge_adapter, train_adapter
from whiflash_engine.training.corpus_options import CorpusOptions
from whiflash_engine.training.corpus_writer import write_corpus
from whiflash_engine.training.dflash import DFlashOptions, train_dflash
from whiflash_engine.training.eagle3 import Eagle3Options, train_eagle3
from whiflash_engine.training.grammars import ToolGrammar
from whiflash_engine.training.loop import Report
from whiflash_engine.training.mixes import MINIATURE, AdapterMix


@dataclass(frozen=True)
class MiniatureOptions:
    model: Path
    data: Path
    output: Path
    template: Path
    minutes: float = 7.0
    """Of training in all: three parts adapter, two parts each drafter."""
    rows: int = 120
    mix: AdapterMix = field(default_factory=lambda: MINIATURE)
    corpus_mix: str = "train_2k"
    max_new: int = 96
    taps: tuple[int, ...] | None = None
    draft_vocab: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("minutes", "rows"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, getattr(self, name), "should be above zero")


def train_miniature(
    options: MiniatureOptions, report: Report, tool_grammar: ToolGrammar | None = None
) -> None:
    """Fills `output` with adapter/, model/, corpus/, eagle3/ and dflash/."""
    root, part = options.output, options.minutes / 7
    report({"step": "adapter"})
    adapter = AdapterOptions(
        model=options.model, data=options.data, run=root / "runs" / "adapter",
        output=root / "adapter", template=options.template, mix=options.mix,
        minutes=3 * part, seed=options.seed,
    )  # fmt: skip
    train_adapter(adapter, report)
    model = root / "model"
    if not (model / TEMPLATE).exists():  # what is written last
        merge_adapter(options.model, adapter.output, options.template, model)
    report({"step": "corpus"})
    corpus = CorpusOptions(
        model=model, data=options.data, output=root / "corpus", mix=options.corpus_mix,
        rows=options.rows, dev_rows=max(options.rows // 8, 4), max_new=options.max_new,
        taps=options.taps, seed=options.seed,
    )  # fmt: skip
    write_corpus(corpus, report, tool_grammar)
    report({"step": "eagle3"})
    train_eagle3(
        Eagle3Options(
            model=model, corpus=corpus.output, run=root / "runs" / "eagle3",
            output=root / "eagle3", epochs=50, minutes=2 * part, seed=options.seed,
            draft_vocab=options.draft_vocab,
        ),
        report,
    )  # fmt: skip
    report({"step": "dflash"})
    train_dflash(
        DFlashOptions(
            model=model, corpus=corpus.output, run=root / "runs" / "dflash",
            output=root / "dflash", epochs=50, minutes=2 * part, seed=options.seed,
            draft_vocab=options.draft_vocab,
        ),
        report,
    )  # fmt: skip
