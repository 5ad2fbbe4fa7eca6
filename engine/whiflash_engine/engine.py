"""The engine: a target, its drafters and their router, loaded once; tokens in, rounds out.

Knows tokens and a tokenizer, no messages. Text, tools and chat stand above.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, get_args

from whiflash_engine.calibrate import calibrate
from whiflash_engine.config import (
    ArmName,
    RouterConfig,
    RouterName,
    SamplingConfig,
    Span,
    require,
)
from whiflash_engine.constraint import Constraint, GrammarFactory
from whiflash_engine.decode import decode
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.events import Completion, Round
from whiflash_engine.grammar_tokenizer import native_tokenizer
from whiflash_engine.loading import load_parts
from whiflash_engine.prefixes import PrefixStore
from whiflash_engine.router.neural import RouterNet
from whiflash_engine.router.perceptron import Perceptron
from whiflash_engine.router.registry import Routers
from whiflash_engine.router.router import Router
from whiflash_engine.router.spans import SpanDetector
from whiflash_engine.sequence import SequenceState, check_prompt
from whiflash_engine.target.base import Target
from whiflash_engine.text import TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REUSE_BYTES = 512 * 2**20
"""Memory for recent sequences: some eight thousand tokens of the embedded default."""


class Engine:
    """Generates with routed speculation. `Engine.load` builds one from files.

    Holds weights and what the routers have learned; nothing of a sequence. Several threads
    may generate at once: they take turns, a round each.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[ArmName, Drafter],
        tokenizer: PreTrainedTokenizerBase,
        *,
        router: RouterConfig | None = None,
        router_net: RouterNet | Perceptron | None = None,
        statistics: Path | None = None,
        model_name: str = "custom",
        identity: str | None = None,
        stop_token_ids: Sequence[int] = (),
        reuse_bytes: int = REUSE_BYTES,
    ) -> None:
        """identity: of the weights; None takes the name. What is learned of them goes under it."""
        self.target = target
        self.drafters = dict(drafters)
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.identity = identity or model_name
        self.stop_token_ids = tuple(stop_token_ids)
        self._bytes = TokenBytes(tokenizer)
        self._turn = threading.Lock()
        self._process = os.getpid()  # threads that a fork does not have would be waited for
        arms = (*self.drafters, "retrieval", "plain")
        self._routers = Routers(
            arms,
            router or RouterConfig(),
            router_net,
            statistics,
            self.identity,
            self._turn,
        )
        self._prefixes = PrefixStore(reuse_bytes)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        ar_drafter: str | Path | None = None,
        diffusion_drafter: str | Path | None = None,
        neural_router: str | Path | None = None,
        statistics: str | Path | None = None,
        ar_depth: int | None = None,
        diffusion_block: int | None = None,
        router: RouterName | RouterConfig = "auto",
        device: str | None = None,
        dtype: str | None = None,
        reuse_bytes: int = REUSE_BYTES,
        report: Callable[[str], None] | None = None,
    ) -> Engine:
        """model: None for the embedded default, a folder, a GGUF file or a hub id.

        ar_drafter, diffusion_drafter: folders or hub ids of EAGLE-3 and DFlash checkpoints; None
        takes those that ship with the embedded default, and none with another model.
        neural_router: folder, file or hub id of a learned router; None takes the one that ships
        with the embedded default, where its drafters are that one's too.
        statistics: a small file where what the router has learned of these drafters is kept from
        run to run; None keeps nothing. It may be deleted at any time; another model's is refused.
        ar_depth: draft tokens of the AR drafter (5). diffusion_block: rows of a DFlash block,
        bonus included; at most what it was trained with, which is the default.
        router: what calls use that say nothing else.
        dtype: "bfloat16", "float32" or "int8"; None takes bfloat16 where the hardware is fast at
        it, else float32. int8, for CPUs, rounds the weights of all products and what they are
        multiplied with to eight bits: faster, and the model's own text a little another. On an x86
        CPU the drafters' have eight bits anyhow: that changes no distribution, nor greedy text.
        reuse_bytes: how much memory recent sequences may hold, so that a prompt which begins
        like one of them is not run again; 0 keeps nothing. report: told in words what is being
        fetched and unpacked.
        """
        chosen = router if isinstance(router, RouterConfig) else RouterConfig(router)
        PrefixStore(reuse_bytes)  # tells what is wrong with it before anything is read
        parts = load_parts(
            model, chosen, ar_drafter=ar_drafter, diffusion_drafter=diffusion_drafter,
            neural_router=neural_router, ar_depth=ar_depth, diffusion_block=diffusion_block,
            device=device, dtype=dtype, report=report,
        )  # fmt: skip
        engine = cls(
            parts.target, parts.drafters, parts.tokenizer, router=chosen,
            router_net=parts.router_net, model_name=parts.model_name, identity=parts.identity,
            statistics=None if statistics is None else Path(statistics).expanduser(),
            stop_token_ids=parts.stop_token_ids, reuse_bytes=reuse_bytes,
        )  # fmt: skip
        calibrate(engine.target, engine.drafters, engine._routers.costs)
        return engine

    @property
    def context_length(self) -> int:
        return self.target.config.max_positions

    def generate(
        self,
        token_ids: Sequence[int],
        *,
        sampling: SamplingConfig | None = None,
        constraint: Constraint | None = None,
        router: RouterConfig | None = None,
        span: Span = "text",
        cancelled: threading.Event | None = None,
    ) -> Iterator[Round]:
        """Yield one `Round` per target pass. Bad input raises here, before any work.

        The stop token, if one ends it, is the last token of the last round. The iterator
        may be dropped at any point. constraint: a fresh one. span: the kind of text that the
        first token lies in. cancelled: once another thread sets it the rounds end, also those
        that wait for other sequences' turns.
        """
        sampling = sampling or SamplingConfig()
        require(span in get_args(Span), "span", span, f"must be one of {', '.join(get_args(Span))}")
        stops = tuple(dict.fromkeys((*sampling.stop_token_ids, *self.stop_token_ids)))
        sampling = replace(sampling, stop_token_ids=stops)
        why = "belongs to the process that loaded it; start others by spawn, not by fork"
        require(os.getpid() == self._process, "engine", f"of process {self._process}", why)
        chosen = self.router(router)
        check_prompt(self.target, token_ids)
        if constraint is not None:
            taken = constraint.length
            require(taken == 0, "constraint", f"{taken} tokens in", "must be a fresh one")
        return self._decoded(list(token_ids), sampling, chosen, constraint, span, cancelled)

    def _decoded(
        self, prompt: list[int], sampling: SamplingConfig, router: Router,
        constraint: Constraint | None, span: Span, cancelled: threading.Event | None,
    ) -> Iterator[Round]:  # fmt: skip
        if cancelled is not None and cancelled.is_set():
            return
        # begun with the first round: an iterator that nobody runs holds nothing
        sequence = self._prefixes.take(prompt)
        if sequence is None:
            sequence = self.sequence(prompt, sampling.max_tokens, span=span, constraint=constraint)
        else:
            sequence.restart(
                prompt, max_tokens=sampling.max_tokens, constraint=constraint,
                spans=SpanDetector(self._bytes, initial=span),
            )  # fmt: skip
        rounds = decode(
            self.target, self.drafters, router, sequence, sampling, self._turn, cancelled
        )
        ran = 0
        try:
            for done in rounds:
                yield done
                ran += 1
        finally:
            rounds.close()
            sequence.constrain(None)
            self._prefixes.give(sequence)
            self._routers.ran(ran)

    def sequence(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        *,
        span: Span = "text",
        constraint: Constraint | None = None,
    ) -> SequenceState:
        """A fresh sequence, for callers that drive `whiflash_engine.decode.decode` themselves."""
        return SequenceState(
            self.target, self.drafters, token_ids, max_tokens=max_tokens,
            spans=SpanDetector(self._bytes, initial=span), constraint=constraint,
        )  # fmt: skip

    def complete(
        self,
        token_ids: Sequence[int],
        *,
        sampling: SamplingConfig | None = None,
        constraint: Constraint | None = None,
        router: RouterConfig | None = None,
    ) -> Completion:
        """`generate`, run to its end."""
        start, first = perf_counter(), 0.0
        rounds: list[Round] = []
        for done in self.generate(
            token_ids, sampling=sampling, constraint=constraint, router=router
        ):
            first = first or perf_counter() - start
            rounds.append(done)
        return Completion.of(
            rounds, prompt_tokens=len(token_ids), seconds=perf_counter() - start,
            time_to_first_token=first,
        )  # fmt: skip

    def grammar(self, lark: str, signposts: Sequence[str] = ()) -> Constraint:
        """A constraint from an llguidance Lark grammar. Raises ConstraintError; ConfigError
        if it is the tokenizer that cannot have one.

        signposts: words that lead out of its free text, where that must not end."""
        return self._grammars.lark(lark, signposts)

    def json_schema(self, schema: Mapping[str, object]) -> Constraint:
        """A constraint from a JSON schema. Raises what `grammar` does."""
        return self._grammars.json_schema(schema)

    @cached_property
    def _grammars(self) -> GrammarFactory:
        return GrammarFactory(
            native_tokenizer(self.tokenizer), self.target.config.vocab_size, self.stop_token_ids
        )

    def router(self, config: RouterConfig | None = None) -> Router:
        """One router per configuration: what it has learned outlives a call. None: the default."""
        return self._routers.get(config)

    def fresh_router(self, config: RouterConfig) -> Router:
        """A router that has learned nothing yet, for callers that compare some."""
        return self._routers.fresh(config)
