"""Ways to decode with this engine: a router, and what may be switched off to see what it buys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.config import ArmName, RouterConfig, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.drafters.eagle3 import Eagle3Drafter
from whiflash_engine.events import Round
from whiflash_engine.router.averages import AveragesPolicy
from whiflash_engine.router.policies import Expected, RouteContext
from whiflash_engine.router.router import Router

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine

Run = Callable[[Sequence[int], int], list[Round]]
"""Prompt ids and most new tokens; the rounds."""


@dataclass(frozen=True, slots=True)
class Way:
    """blind: running averages that do not look at the entropy, in place of the policy.
    eager: no Lazy Catch-up, every drafter ingests every round. full_layer: no KV-only Prefill,
    EAGLE-3 runs its whole layer at every position that it catches up on.
    """

    router: RouterConfig
    blind: bool = False
    eager: bool = False
    full_layer: bool = False

    def fresh(self, engine: Engine) -> Router:
        """Its router, that has learned nothing yet."""
        router = engine.fresh_router(self.router)
        if not self.blind:
            return router
        arms: list[ArmName] = [*engine.drafters, "retrieval", "plain"]
        return Router(
            _Blind(), balance=self.router.balance, span_bias=self.router.span_bias,
            probed=arms, lets_stand=not self.router.every_round, costs=router.costs,
        )  # fmt: skip

    def runner(self, engine: Engine) -> Run:
        """Greedy. What its router learns stays from prompt to prompt."""
        router, drafters = self.fresh(engine), engine.drafters
        if self.full_layer:
            drafters = {name: _full(drafter) for name, drafter in drafters.items()}

        def run(ids: Sequence[int], tokens: int) -> list[Round]:
            sampling = SamplingConfig(max_tokens=tokens, stop_token_ids=engine.stop_token_ids)
            sequence = engine.sequence(ids, tokens)
            rounds = []
            for done in decode(engine.target, drafters, router, sequence, sampling):
                rounds.append(done)
                if self.eager and sequence.finish_reason is None:
                    for name, drafter in drafters.items():
                        drafter.ingest(sequence.drafts[name], sequence.log, sequence.tokens)
            return rounds

        return run


class _Blind(AveragesPolicy):
    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        return super().expect(arm, context._replace(entropy=0.0))

    def learn(self, round: Round) -> None:
        super().learn(replace(round, entropy=0.0))


def _full(drafter: Drafter) -> Drafter:
    """DFlash has no queries at the context's positions, so there is nothing to run in full."""
    if not isinstance(drafter, Eagle3Drafter):
        return drafter
    whole = object.__new__(_FullLayer)
    vars(whole).update(vars(drafter))
    return whole


class _FullLayer(Eagle3Drafter):
    """The same slots with queries, output and MLP at every one of them."""

    def _take_in(
        self, kv: KVCache, features: Tensor, tokens: Sequence[int], rows: int = 1
    ) -> Tensor:
        return super()._take_in(kv, features, tokens, rows=len(tokens))
