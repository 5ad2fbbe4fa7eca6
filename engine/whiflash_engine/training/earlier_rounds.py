"""What an earlier run logged, perhaps of earlier drafters: more to learn from, nothing to judge
by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.errors import CheckpointError
from whiflash_engine.training.rounds import HELD_OUT, Rounds


@dataclass(frozen=True, slots=True)
class EarlierRounds:
    """prompts: their ids, by number."""

    folder: Path
    rounds: Rounds
    prompts: Sequence[str]

    @staticmethod
    def read(folder: Path) -> EarlierRounds:
        """The folder of a run. CheckpointError if it is none."""
        settings = Fields.read(folder / "settings.json")
        return EarlierRounds(folder, Rounds.read(folder), settings.texts("prompts") or ())

    def beside(self, own: Rounds, prompts: Sequence[str]) -> Rounds:
        """These and a new run's own (with those of other earlier runs, if there are), whose prompts
        have these ids, by number. What is held out there is not learned from here either, and
        nothing else is held out."""
        if self.rounds.features.shape[1] != own.features.shape[1]:
            raise CheckpointError(self.folder, "holds prefixes of a model of another size")
        unseen = set(prompts[::HELD_OUT])
        known = [i for i, prompt in enumerate(self.prompts) if prompt not in unseen]
        earlier = self.rounds.of(torch.isin(self.rounds.prompt, torch.tensor(known)))
        return Rounds(
            torch.cat((own.features, earlier.features)),
            torch.cat((own.accepted, earlier.accepted)),
            torch.cat((own.drafted, earlier.drafted)),
            torch.cat((own.prompt, earlier.prompt * HELD_OUT + 1)),
            torch.cat((own.weight, earlier.weight)),
            tuple(map(max, own.positions, earlier.positions)),
        )
