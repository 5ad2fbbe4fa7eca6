"""What is told once: frozen, validated on construction, errors name field and value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from whiflash_engine.errors import ConfigError

ArmName = Literal["ar", "diffusion", "retrieval", "forced", "plain"]
Span = Literal["text", "reasoning", "json", "tool_call"]
RouterName = Literal["auto", "ar", "diffusion", "retrieval", "plain", "entropy", "neural", "random"]


def require(ok: bool, field: str, value: object, why: str) -> None:
    """Raise `ConfigError(field, value, why)` unless `ok`."""
    if not ok:
        raise ConfigError(field, value, why)


def require_number(field: str, value: object) -> None:
    """An int or a float, whatever its range."""
    found = isinstance(value, int | float) and not isinstance(value, bool)
    require(found, field, value, "must be a number")


def require_whole(field: str, value: object) -> None:
    found = isinstance(value, int) and not isinstance(value, bool)
    require(found, field, value, "must be a whole number")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `kind` is one of default, linear, llama3, yarn (Hugging Face names).

    truncate: yarn's band of frequencies begins and ends at whole dimensions.
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        require(self.theta > 0, "rope_theta", self.theta, "must be positive")
        require(self.factor >= 1.0, "rope factor", self.factor, "must be at least 1")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Geometry of a decoder of the Llama/Qwen2/Qwen3/Mistral family."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_positions: int
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for field in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "num_kv_heads", "head_dim", "max_positions",
        ):  # fmt: skip
            value = getattr(self, field)
            require(value > 0, field, value, "must be positive")
        require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads", self.num_kv_heads, f"must divide num_heads={self.num_heads}",
        )  # fmt: skip
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "must be even for RoPE")


_COLD = 1e-30
"""Temperatures below are 0: as float32 they soon would be, and nothing can be divided by that."""


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How a token is chosen from the target's logits, and when to stop.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    The random stream is indexed by position: the same seed gives the same draws at the same
    positions, in a draft if that starts at the same one as well. A text is the same again if arms
    and draft lengths are; "auto" picks both by measured time.
    logprobs: how many of the likeliest tokens to tell of beside each committed one; None tells
    of none, not even of that one.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for field in ("max_tokens", "top_k", "seed"):
            require_whole(field, getattr(self, field))
        for field in ("temperature", "top_p", "min_p", "repetition_penalty"):
            require_number(field, getattr(self, field))
        stops = self.stop_token_ids
        require(isinstance(stops, tuple), "stop_token_ids", stops, "must be a tuple of token ids")
        for token in stops:
            require_whole("stop_token_ids", token)
        require(self.max_tokens > 0, "max_tokens", self.max_tokens, "must be at least 1")
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature", self.temperature, "must be 0 (greedy) or positive",
        )  # fmt: skip
        require(self.top_k >= 0, "top_k", self.top_k, "must be 0 (off) or positive")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")
        require(0 <= self.min_p < 1, "min_p", self.min_p, "must lie in [0, 1)")
        require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty", self.repetition_penalty, "must be positive (1 is off)",
        )  # fmt: skip
        if self.logprobs is not None:
            require_whole("logprobs", self.logprobs)
            require(self.logprobs >= 0, "logprobs", self.logprobs, "must not be negative")

    @property
    def greedy(self) -> bool:
        return self.temperature < _COLD


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Which policy picks the arm, and its dials (see `whiflash_engine.router`).

    balance 0 maximises expected tokens a round, 1 expected tokens a second.
    span_bias is the strength, in log units, of the prior that favours diffusion in
    `json` and `tool_call` spans and AR in `reasoning` spans; 0 switches it off.
    entropy_threshold is the paper's tau in nats (WhiFlash, arXiv 2606.07710, section on
    WhiFlash-Entropy): AR if H > tau, else diffusion.
    delta_threshold is that of a published neural router, in tokens: AR if it expects AR to
    commit more than so many tokens more than diffusion.
    retrieval: whether "auto" may copy drafts from the text. whole_drafts: always draft all
    there is, instead of what pays, as "random" and the published routers do anyway, and "ar" and
    "diffusion" where text is sampled. learned: whether "auto" asks the learned router, where
    there is one. hindsight: the share, 0 to 1, of the times an idle drafter catches up at which
    it is also asked for a draft from where the last round began, so that "auto" learns how it would
    have done; it costs more than it brings (docs/experiments.md, "In hindsight"). every_round:
    whether routers that learn ask anew every round, also where the last answer was a clear one.
    """

    name: RouterName = "auto"
    balance: float = 1.0
    span_bias: float = 0.05
    entropy_threshold: float = 0.5
    retrieval: bool = True
    whole_drafts: bool = False
    learned: bool = True
    hindsight: float = 0.0
    delta_threshold: float = 1.0
    seed: int = 0
    every_round: bool = False

    def __post_init__(self) -> None:
        for field in (
            "balance", "span_bias", "entropy_threshold", "delta_threshold", "hindsight",
        ):  # fmt: skip
            require_number(field, getattr(self, field))
        for field in ("retrieval", "whole_drafts", "learned", "every_round"):
            value = getattr(self, field)
            require(isinstance(value, bool), field, value, "must be True or False")
        require_whole("seed", self.seed)
        names = get_args(RouterName)
        require(self.name in names, "router", self.name, f"must be one of {', '.join(names)}")
        require(0 <= self.balance <= 1, "balance", self.balance, "must lie in [0, 1]")
        require(0 <= self.hindsight <= 1, "hindsight", self.hindsight, "must lie in [0, 1]")
        require(
            math.isfinite(self.span_bias) and self.span_bias >= 0,
            "span_bias", self.span_bias, "must be 0 (off) or positive",
        )  # fmt: skip
        require(
            self.entropy_threshold >= 0,
            "entropy_threshold", self.entropy_threshold, "must not be negative (nats)",
        )  # fmt: skip
        require(
            math.isfinite(self.delta_threshold),
            "delta_threshold", self.delta_threshold, "must be a finite number of tokens",
        )  # fmt: skip
