"""A target and drafters whose every distribution can be written down.

The toy target is a Markov chain of order two over a small vocabulary; toy drafters draw
from tables of their own. Tiny real networks, with random weights, stand below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whiflash_engine.checkpoints.dflash import DFlashConfig, dflash_shapes
from whiflash_engine.checkpoints.eagle3 import Eagle3Config, eagle3_shapes
from whiflash_engine.config import ArmName, ModelConfig, RopeConfig, RouterConfig, SamplingConfig
from whiflash_engine.constraint import Constraint
from whiflash_engine.decode import decode
from whiflash_engine.drafters.base import Chooser, Drafter, DraftState, Proposal, certain, scatter
from whiflash_engine.drafters.dflash import DFlashDrafter
from whiflash_engine.drafters.eagle3 import Eagle3Drafter
from whiflash_engine.drafters.ending import Ending, chances
from whiflash_engine.events import Round
from whiflash_engine.features import FeatureLog
from whiflash_engine.graphs import Capture
from whiflash_engine.law import distribution
from whiflash_engine.router.build import build_router
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.router import Router
from whiflash_engine.router.spans import SpanDetector
from whiflash_engine.sampling import penalise
from whiflash_engine.sequence import SequenceState
from whiflash_engine.target.base import Target, TargetCache, TargetOutput
from whiflash_engine.target.native import NativeTarget


@dataclass
class ToyCache:
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return 8 * len(self.tokens)

    def crop(self, length: int) -> None:
        del self.tokens[length:]


class ToyTarget:
    """p(next | last two tokens) = softmax(table[a, b]); features are the token itself."""

    taps = (1,)
    device = torch.device("cpu")
    dtype = torch.float32
    precision = "float32"

    def __init__(self, vocab: int, seed: int = 0, max_positions: int = 512) -> None:
        self.config = ModelConfig(
            vocab, 2, 2, 1, 1, 1, 2, 1e-5, RopeConfig(), max_positions=max_positions
        )
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(vocab, vocab, vocab, generator=generator) * 1.5

    def new_cache(self, capacity: int) -> TargetCache:
        return ToyCache()

    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        assert isinstance(cache, ToyCache)
        cache.tokens += tokens
        every = [0, *cache.tokens]
        pairs = [(every[i - 1], every[i]) for i in range(len(every) - len(tokens), len(every))]
        logits = torch.stack([self.table[a, b] for a, b in pairs])
        features = torch.tensor(tokens, dtype=torch.float32)[:, None].repeat(1, 2)
        kept = slice(len(tokens) - rows, None)
        return TargetOutput(logits[kept], features, features[kept])

    @property
    def embedding(self) -> None:
        return None

    def embed(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def head_rows(self, ids: Tensor | None) -> Tensor:
        raise NotImplementedError


@dataclass
class ToyState:
    rows: list[float] = field(default_factory=list)

    @property
    def watermark(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return 8 * len(self.rows)

    def crop(self, length: int) -> None:
        del self.rows[length:]


class ToyDrafter:
    """q(next | last two tokens) from a table over the first `draft_vocab` tokens.

    blend: how much of the target's own table is mixed in, so that drafts get accepted.
    Checks on every call that its state was fed what the protocol promises.
    """

    def __init__(
        self, target: ToyTarget, *, seed: int, draft: int = 3, blend: float = 0.7,
        draft_vocab: int | None = None,
    ) -> None:  # fmt: skip
        self.max_draft = draft
        vocab = target.config.vocab_size
        self.draft_vocab = draft_vocab or vocab
        generator = torch.Generator().manual_seed(seed)
        known = target.table[:, :, : self.draft_vocab]
        noise = torch.randn(known.shape, generator=generator)
        self.table = (1 - blend) * noise + blend * known
        self.vocab = vocab

    def new_state(self, capacity: int) -> ToyState:
        return ToyState()

    def ingest(self, state: DraftState, log: FeatureLog, tokens: Sequence[int]) -> None:
        assert isinstance(state, ToyState) and len(tokens) == log.length + 1
        state.rows += log.rows(state.watermark, log.length)[:, 0].tolist()
        assert state.rows == [float(t) for t in tokens[:-1]], "the log and the tokens differ"

    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (), floor: float = 0.0,
    ) -> Proposal:  # fmt: skip
        assert state.watermark == len(tokens) - 1
        draft, ending = list(known[:count]), Ending(floor)
        rows: list[Tensor] = []
        for i in range(len(draft), count):
            a, b = [0, *tokens, *draft][-2:]
            chosen, q = chooser.choose(self.table[a, b][None], len(tokens) + i, len(tokens))
            if ending.before(*chances(self.table[a, b][None], q, floor)):
                break
            draft += chosen
            rows += [] if q is None else [q]
        ids = None if self.draft_vocab == self.vocab else torch.arange(self.draft_vocab)
        spread = scatter(torch.cat(rows) if rows else None, ids, self.vocab)
        return Proposal(tuple(draft), certain(known[:count], spread), ending.doubt)


class ToyConstraint:
    """Allows token b after token a when (a + b) % 3 is not 0; any token first.

    forcing: after 2 only 5 is allowed, and after 5 only 0.
    """

    narrowed = False

    def __init__(self, vocab: int, *, forcing: bool = False) -> None:
        self._forcing = forcing
        self._allowed = torch.tensor(
            [[(a + b) % 3 != 0 for b in range(vocab)] for a in range(vocab)]
        )
        for token, only in ((2, 5), (5, 0)) if forcing else ():
            self._allowed[token] = torch.arange(vocab) == only
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self._tokens)

    def allowed(self, last: int | None) -> Tensor:
        return torch.ones_like(self._allowed[0]) if last is None else self._allowed[last]

    def close_by(self, total: int) -> None:
        pass

    def masks(self, draft: Sequence[int]) -> tuple[int, Tensor]:
        last = self._tokens[-1] if self._tokens else None
        rows = [self.allowed(last)]
        for token in draft:
            if not rows[-1][token]:
                break
            rows.append(self.allowed(token))
        return len(rows) - 1, torch.stack(rows)

    def forced(self, limit: int) -> tuple[int, ...]:
        if not self._forcing or not self._tokens:
            return ()
        return {2: (5, 0), 5: (0,)}.get(self._tokens[-1], ())[: max(limit, 0)]

    def commit(self, tokens: Sequence[int]) -> None:
        assert self.masks(tokens)[0] == len(tokens), "an illegal token was committed"
        self._tokens += tokens

    def rollback(self, count: int) -> None:
        assert 0 <= count <= self.length
        del self._tokens[self.length - count :]


class Prophet:
    """Wraps a drafter: it drafts as ever, then a stretch of the draft is set right.

    Tiny random networks are hardly ever accepted; so the first `position % 4` tokens of
    each greedy draft are replaced by what the target will say. With that, real KV goes
    through partial and full acceptance.
    """

    def __init__(self, drafter: Drafter, known: Sequence[int]) -> None:
        """known: the prompt and all that plain decoding makes of it."""
        self._drafter, self._known = drafter, known
        self.max_draft = drafter.max_draft

    def new_state(self, capacity: int) -> DraftState:
        return self._drafter.new_state(capacity)

    def ingest(self, state: DraftState, log: FeatureLog, tokens: Sequence[int]) -> None:
        self._drafter.ingest(state, log, tokens)

    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (), floor: float = 0.0,
    ) -> Proposal:  # fmt: skip
        own = self._drafter.propose(state, tokens, count, chooser, known, floor)
        right = self._known[len(tokens) : len(tokens) + min(len(tokens) % 5, count)]
        return Proposal((*right, *own.tokens[len(right) :]), doubt=own.doubt)


def toy_drafters(
    target: ToyTarget, draft_vocab: int | None = None, blend: float = 0.7
) -> dict[ArmName, Drafter]:
    return {
        "ar": ToyDrafter(target, seed=11, draft_vocab=draft_vocab, blend=blend),
        "diffusion": ToyDrafter(target, seed=12, draft_vocab=draft_vocab, blend=blend),
    }


def run(
    target: Target,
    drafters: Mapping[ArmName, Drafter],
    prompt: Sequence[int],
    *,
    sampling: SamplingConfig,
    router: RouterConfig | Router,
    constraint: Constraint | None = None,
) -> list[Round]:
    """One generation from a fresh sequence."""
    sequence = new_sequence(target, drafters, prompt, sampling.max_tokens, constraint)
    if isinstance(router, RouterConfig):
        router = new_router(router, drafters)
    return list(decode(target, drafters, router, sequence, sampling))


def new_router(config: RouterConfig, drafters: Mapping[ArmName, Drafter]) -> Router:
    return build_router(config, (*drafters, "retrieval", "plain"), costs=CostModel())


def new_sequence(
    target: Target,
    drafters: Mapping[ArmName, Drafter],
    prompt: Sequence[int],
    max_tokens: int,
    constraint: Constraint | None = None,
) -> SequenceState:
    spans = SpanDetector(lambda token: bytes([97 + token % 26]))
    return SequenceState(
        target, drafters, prompt, max_tokens=max_tokens, spans=spans, constraint=constraint
    )


def warp(
    logits: Tensor, config: SamplingConfig, seen: Sequence[int] = (), draft: Sequence[int] = ()
) -> Tensor:
    """All that happens to logits: (r, V) -> (r, V) probabilities. seen, draft: of `penalise`."""
    return distribution(penalise(logits, config.repetition_penalty, seen, draft), config)


# ---------------------------------------------------------------- tiny networks

TINY = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4,
    num_kv_heads=2, head_dim=16, rms_norm_eps=1e-5, rope=RopeConfig(), max_positions=1024,
    tie_embeddings=True,
)  # fmt: skip


def _random(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """In bfloat16's numbers, as models are published."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape, dtype=dtype) if "norm" in name
        else (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16().to(dtype)
        for name, shape in shapes.items()
    }  # fmt: skip


def tiny_target(
    taps: tuple[int, ...] = (1, 2, 3), seed: int = 0, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", capture: Capture | None = None, *, rounded: bool = False,
) -> NativeTarget:  # fmt: skip
    c = TINY
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocab_size, c.hidden_size),
        "model.norm.weight": (c.hidden_size,),
    }
    for i in range(c.num_layers):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": (c.hidden_size,),
            p + "post_attention_layernorm.weight": (c.hidden_size,),
            p + "self_attn.q_proj.weight": (q, c.hidden_size),
            p + "self_attn.k_proj.weight": (kv, c.hidden_size),
            p + "self_attn.v_proj.weight": (kv, c.hidden_size),
            p + "self_attn.o_proj.weight": (c.hidden_size, q),
            p + "mlp.gate_proj.weight": (c.intermediate_size, c.hidden_size),
            p + "mlp.up_proj.weight": (c.intermediate_size, c.hidden_size),
            p + "mlp.down_proj.weight": (c.hidden_size, c.intermediate_size),
        }
    weights = _random(shapes, seed, dtype)
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = (3.0 * table).bfloat16().to(dtype)
    weights = {name: w.to(device) for name, w in weights.items()}
    return NativeTarget(c, weights, taps, rounded=rounded, capture=capture)


def tiny_eagle3_parts(
    target: NativeTarget, seed: int = 1
) -> tuple[Eagle3Config, dict[str, Tensor]]:
    c = TINY
    config = Eagle3Config(
        hidden_size=c.hidden_size, target_hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size, num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads, head_dim=c.head_dim, rms_norm_eps=c.rms_norm_eps,
        rope=c.rope, vocab_size=c.vocab_size, draft_vocab_size=c.vocab_size, aux=target.taps,
        norm_before_residual=False, norm_before_fc=False, fc_norm=False, norm_output=False,
        qk_norm=False,
    )  # fmt: skip
    return config, _random(eagle3_shapes(config)[0], seed, target.dtype)


def tiny_eagle3(
    target: NativeTarget, depth: int = 4, capture: Capture | None = None
) -> Eagle3Drafter:
    config, weights = tiny_eagle3_parts(target)
    return Eagle3Drafter(config, _beside(target, weights), target, depth, capture=capture)


def tiny_dflash_parts(
    target: NativeTarget, seed: int = 2, block: int = 5
) -> tuple[DFlashConfig, dict[str, Tensor]]:
    c = TINY
    config = DFlashConfig(
        hidden_size=c.hidden_size, intermediate_size=c.intermediate_size, num_layers=2,
        num_heads=c.num_heads, num_kv_heads=c.num_kv_heads, head_dim=c.head_dim,
        rms_norm_eps=c.rms_norm_eps, rope=c.rope, vocab_size=c.vocab_size,
        draft_vocab_size=c.vocab_size, block_size=block, mask_token_id=60, taps=target.taps,
        windows=(None, None), causal=(False, False),
    )  # fmt: skip
    return config, _random(dflash_shapes(config)[0], seed, target.dtype)


def tiny_dflash(target: NativeTarget, capture: Capture | None = None) -> DFlashDrafter:
    config, weights = tiny_dflash_parts(target)
    return DFlashDrafter(config, _beside(target, weights), target, capture=capture)


def _beside(target: NativeTarget, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.to(target.device) for name, weight in weights.items()}


def tiny_drafters(target: NativeTarget, capture: Capture | None = None) -> dict[ArmName, Drafter]:
    return {
        "ar": tiny_eagle3(target, capture=capture),
        "diffusion": tiny_dflash(target, capture=capture),
    }
