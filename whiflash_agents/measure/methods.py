"""What the benchmark can compare: names of methods, and the routers behind them."""

from __future__ import annotations

from collections.abc import Mapping

from whiflash_engine.config import RouterConfig

TRANSFORMERS, PROMPT_LOOKUP = "transformers", "hf lookup"
"""transformers' own `generate`, without drafts and with prompt lookup."""
LLAMA, LLAMA_LOOKUP = "llama.cpp", "llama lookup"
"""llama.cpp, so too."""

ORACLE = "oracle"
"""Knows every draft's fate: see `oracle`."""

_PLAIN = RouterConfig("plain")
STATIC: Mapping[str, RouterConfig] = {
    "plain": _PLAIN,
    "ar": RouterConfig("ar"),
    "diffusion": RouterConfig("diffusion"),
    "retrieval": RouterConfig("retrieval"),
}

COMPARISONS: Mapping[str, Mapping[str, RouterConfig]] = {
    "routers": {
        **STATIC,
        "paper's rule": RouterConfig("entropy", span_bias=0.0),
        "averages": RouterConfig(learned=False),
        "auto": RouterConfig(),
    },
    "ablation": {
        "plain": _PLAIN,
        "auto": RouterConfig(),
        "no learned router": RouterConfig(learned=False),
        "no span bias": RouterConfig(span_bias=0.0),
        "no costs (balance 0)": RouterConfig(balance=0.0),
        "whole drafts": RouterConfig(whole_drafts=True),
        "no retrieval": RouterConfig(retrieval=False),
    },
    "dial": {
        "plain": _PLAIN,
        **{f"balance {b}": RouterConfig(balance=b) for b in (0.0, 0.25, 0.5, 0.75, 1.0)},
    },
}
"""Each holds "plain", to which the ratios are."""
