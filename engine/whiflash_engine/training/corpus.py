"""Read a corpus: token ids of regenerated responses and the target's features, memory-mapped.

A corpus folder holds `manifest.json` (`plan.json` until it is complete) and numbered shards in
`train/` and `dev/`:
`rows-000.jsonl` (one response a line) and, unless the corpus was made without them,
`features-000.npy` (float16 [positions, taps+1, H]); beside them `prompts.ids` and
`prompts.jsonl.gz`, what was asked or will be.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.errors import CheckpointError
from whiflash_engine.training.model_files import fingerprint


@dataclass(frozen=True)
class Sample:
    """One response of the target. Features cover every position but the last token's."""

    id: str
    kind: str
    source: str
    temperature: float
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    shard: int
    offset: int
    """First row in the shard's feature file."""
    forced: tuple[int, ...] = ()
    """Indices of response tokens that were the only ones a grammar allowed."""
    overruled: tuple[int, ...] = ()
    """Indices of response tokens where a grammar forbade what the target likes best."""

    @property
    def positions(self) -> int:
        return len(self.prompt) + len(self.response) - 1


class Corpus:
    """One split of a corpus folder."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder / split
        plan, manifest = folder / "plan.json", folder / "manifest.json"
        # of a corpus that is still being written, the chunks that are there can be used
        self.manifest = Fields.read(plan if plan.exists() else manifest)
        self.target = self.manifest.text("target")
        self.with_features = self.manifest.flag("features", True)
        self.samples: list[Sample] = []
        self._features: list[np.ndarray] = []
        for shard, path in enumerate(sorted(self.folder.glob("rows-*.jsonl"))):
            self.samples += _read_samples(path, shard)
            if not self.with_features:
                continue
            features = path.with_name(path.name.replace("rows-", "features-")).with_suffix(".npy")
            try:
                self._features.append(np.load(features, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError) as error:
                raise CheckpointError(features, f"unreadable features: {error}") from error
            end = self.samples[-1].offset + self.samples[-1].positions
            if end != len(self._features[shard]):
                raise CheckpointError(
                    features, f"holds {len(self._features[shard])} rows, not {end}"
                )
        if not self.samples:
            raise CheckpointError(self.folder, "holds no samples")

    @property
    def taps(self) -> tuple[int, ...]:
        taps = self.manifest.integers("taps")
        if taps is None:
            raise self.manifest.fail("taps", "is missing (a list of integers)")
        return taps

    def require_target(self, model: Path) -> None:
        """Refuse a corpus that another target wrote: its features would not fit."""
        found = fingerprint(model)
        if found != self.target:
            raise CheckpointError(
                self.manifest.path,
                f"was made with target {self.target[:12]}, {model} is {found[:12]}",
            )

    def features(self, sample: Sample) -> Tensor:
        """float16 [positions, taps+1, H]; the last slice is the normed last hidden state.
        Only of a corpus `with_features`."""
        rows = self._features[sample.shard][sample.offset : sample.offset + sample.positions]
        return torch.from_numpy(np.array(rows))

    def token_counts(self) -> tuple[Counter[int], Counter[int]]:
        """How often each id was written, and seen in prompts."""
        written: Counter[int] = Counter()
        seen: Counter[int] = Counter()
        for sample in self.samples:
            written.update(sample.response)
            seen.update(sample.prompt)
        return written, seen


def _read_samples(path: Path, shard: int) -> list[Sample]:
    samples: list[Sample] = []
    offset = 0
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                value = json.loads(line)
                sample = Sample(
                    id=value["id"], kind=value["kind"], source=value["source"],
                    temperature=float(value["temperature"]), prompt=tuple(value["prompt"]),
                    response=tuple(value["response"]), shard=shard, offset=offset,
                    forced=tuple(value.get("forced", ())),
                    overruled=tuple(value.get("overruled", ())),
                )  # fmt: skip
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path}:{number}", f"not a corpus row: {error}") from error
            offset += sample.positions
            samples.append(sample)
    if not samples:
        raise CheckpointError(path, "is empty")
    return samples
