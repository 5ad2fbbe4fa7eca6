"""What the benchmark can compare: names of methods, and the ways to decode behind them."""

from __future__ import annotations

from collections.abc import Mapping

from whiflash_agents.measure.ways import Way
from whiflash_engine.config import RouterConfig

TRANSFORMERS, PROMPT_LOOKUP = "transformers", "hf lookup"
"""transformers' own `generate`, without drafts and with prompt lookup."""
LLAMA, LLAMA_LOOKUP = "llama.cpp", "llama lookup"
"""llama.cpp, so too."""

ORACLE = "oracle"
"""Knows every draft's fate: see `oracle`."""

STATIC: Mapping[str, Way] = {
    "plain": Way(RouterConfig("plain")),
    "ar": Way(RouterConfig("ar", whole_drafts=True)),
    "diffusion": Way(RouterConfig("diffusion", whole_drafts=True)),
    "retrieval": Way(RouterConfig("retrieval")),
}
"""One arm always, its drafts whole, as published."""
STOPPING: Mapping[str, Way] = {
    "ar, stopping": Way(RouterConfig("ar")),
    "diffusion, stopping": Way(RouterConfig("diffusion")),
}
"""The same, with drafts up to where they stop paying."""
AUTO = "auto"
_AUTO = RouterConfig()

COMPARISONS: Mapping[str, Mapping[str, Way]] = {
    "routers": {
        **STATIC,
        **STOPPING,
        "paper's rule": Way(RouterConfig("entropy", span_bias=0.0)),
        "averages": Way(RouterConfig(learned=False)),
        AUTO: Way(_AUTO),
    },
    "ablation": {
        "plain": STATIC["plain"],
        AUTO: Way(_AUTO),
        "not learned": Way(RouterConfig(learned=False)),
        "no entropy": Way(RouterConfig(learned=False), blind=True),
        "no span bias": Way(RouterConfig(span_bias=0.0)),
        "no costs": Way(RouterConfig(balance=0.0)),
        "whole drafts": Way(RouterConfig(whole_drafts=True)),
        "no retrieval": Way(RouterConfig(retrieval=False)),
        "asked every round": Way(RouterConfig(every_round=True)),
        "with hindsight": Way(RouterConfig(hindsight=1.0)),
        "no lazy catch-up": Way(_AUTO, eager=True),
        "no kv-only": Way(_AUTO, full_layer=True),
    },
    "dial": {
        "plain": STATIC["plain"],
        **{f"balance {b}": Way(RouterConfig(balance=b)) for b in (0.0, 0.25, 0.5, 0.75, 1.0)},
    },
}
"""Each holds "plain", to which the ratios are."""
