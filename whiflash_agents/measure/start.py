"""One prompt, decoded many times from the same start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whiflash_agents.measure.prompts import Prompt
from whiflash_engine.config import RouterConfig, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.events import Round
from whiflash_engine.sequence import SequenceState

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine


class PromptStart:
    """One prompt. Its pass through the target is made once; every run starts from there."""

    def __init__(self, engine: Engine, prompt: Prompt, tokens: int) -> None:
        self.engine, self.prompt = engine, prompt
        self.ids = prompt.token_ids(engine)
        self.sampling = SamplingConfig(max_tokens=tokens, stop_token_ids=engine.stop_token_ids)
        self.sequence = engine.sequence(self.ids, tokens)

    def run(self, router: RouterConfig, grammar: bool) -> list[Round]:
        return self.decoded(router, self.rewound(grammar))

    def decoded(self, router: RouterConfig, sequence: SequenceState) -> list[Round]:
        """Rounds from where a sequence stands."""
        engine = self.engine
        chosen = engine.router(router)
        return list(decode(engine.target, engine.drafters, chosen, sequence, self.sampling))

    def rewound(self, grammar: bool) -> SequenceState:
        """The sequence, at the end of the prompt; drafters have ingested nothing."""
        sequence = self.sequence
        sequence.constrain(None)
        sequence.rewind(len(self.ids))
        for state in sequence.drafts.values():
            state.crop(0)  # each run ingests the prompt anew, as lazily as ever
        sequence.constrain(self.prompt.constraint(self.engine) if grammar else None)
        return sequence
