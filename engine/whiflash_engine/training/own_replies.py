"""Replies of the untouched model: what an adapter goes on learning, so that it keeps its manner.

Plain chat, and JSON decoded under a schema. Replies that were cut short are left out: they
would teach stopping early.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.composed_words import SMALL_TALK
from whiflash_engine.training.generate import BatchGenerator, Job
from whiflash_engine.training.grammars import PromptGrammars
from whiflash_engine.training.llama import Llama
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.model_files import write_json
from whiflash_engine.training.rows import PromptRow, load_rows

CHAT = ("dolly", "self_instruct", "nq_open", "oasst_prompts")
DOCUMENTS = (
    "jsonschemabench", "schemastore", "snips_json", "restaurant8k_json", "banking77_json",
    "clinc_json", "dolly_json", "e2e_json", "gsm8k_json",
)  # fmt: skip

Reply = tuple[PromptRow, str]


class OwnReplies:
    """Made once per run folder and kept there."""

    def __init__(
        self, data: Path, run: Path, model: Llama, tokenizer: HubTokenizer, seed: int
    ) -> None:
        self.data, self.run, self.model, self.tokenizer = data, run, model, tokenizer
        self.seed = seed
        self.grammars = PromptGrammars(tokenizer, model.config.vocab_size)

    def plain(self, mix: AdapterMix) -> list[Reply]:
        """Chat, and small talk if the mix wants it."""
        rows = self._rows(CHAT, mix.plain)
        if mix.small_talk:
            rows += [
                PromptRow(
                    f"small_talk-{i}", "chat", "small_talk",
                    ({"role": "user", "content": text},), (),
                )
                for i, text in enumerate(SMALL_TALK)
            ]  # fmt: skip
        return self._replies("plain", rows, max_new=96)

    def documents(self, mix: AdapterMix) -> list[Reply]:
        """JSON that obeys the prompt's schema."""
        rows = self._rows(DOCUMENTS, 3 * mix.documents // 2)
        return self._replies("documents", rows, max_new=160)[: mix.documents]

    def _rows(self, sources: Sequence[str], count: int) -> list[PromptRow]:
        """Random short rows, in equal parts from every source as far as it has them."""
        if not count:
            return []
        rng = random.Random(self.seed)
        picked: list[PromptRow] = []
        for left, source in zip(range(len(sources), 0, -1), sources, strict=True):
            rows = [
                row
                for row in load_rows(self.data, "train", source)
                if len(json.dumps([row.messages, row.schema])) < 1400
            ]
            picked += rng.sample(rows, min(-(-(count - len(picked)) // left), len(rows)))
        return picked

    def _replies(self, name: str, rows: Sequence[PromptRow], max_new: int) -> list[Reply]:
        path = self.run / f"{name}_replies.json"
        if not path.exists():
            jobs = [job for row in rows if (job := self._job(row, max_new)) is not None]
            jobs.sort(key=lambda job: len(job.prompt))
            length = max((len(job.prompt) for job in jobs), default=0) + max_new
            generator = BatchGenerator(
                self.model, slots=96, length=length, seed=self.seed,
                stop_ids=frozenset({self.tokenizer.stop_id}),
            )  # fmt: skip
            replies = {
                answer.job.key: self.tokenizer.decode(answer.tokens[:-1])
                for answer in generator.run(jobs)
                if answer.tokens[-1] == self.tokenizer.stop_id
            }
            write_json(path, replies)
        saved: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return [(row, saved[row.id]) for row in rows if row.id in saved]

    def _job(self, row: PromptRow, max_new: int) -> Job | None:
        """None where the schema is one that cannot be compiled."""
        grammar = self.grammars.of(row.schema)
        if row.schema is not None and grammar is None:
            return None
        ids = tuple(self.tokenizer.encode(self.tokenizer.render(row.messages, ())))
        return Job(row.id, ids, max_new, grammar=grammar)
