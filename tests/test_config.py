"""What is told once is checked where it is told, by the name of the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from whiflash_engine.config import RouterConfig, SamplingConfig
from whiflash_engine.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "field", "values"),
    [
        (SamplingConfig, "max_tokens", ("5", 1.5, True, None, 0)),
        (SamplingConfig, "temperature", ("0", True, None, -1, math.nan)),
        (SamplingConfig, "top_p", ("1", True, None, 0)),
        (SamplingConfig, "seed", (0.5, False)),
        (SamplingConfig, "logprobs", (1.5, True, "3", -1)),
        (SamplingConfig, "stop_token_ids", ("ab", [1], 7, None, (1, "b"), (True,))),
        (RouterConfig, "balance", ("x", None, True, 2, math.nan)),
        (RouterConfig, "span_bias", ("x", None, True, -1, math.inf)),
        (RouterConfig, "entropy_threshold", ("a", None, False, -0.1, math.nan)),
        (RouterConfig, "delta_threshold", ("a", None, False, math.inf)),
        (RouterConfig, "retrieval", ("no", 1, None)),
        (RouterConfig, "whole_drafts", ("no", 0)),
        (RouterConfig, "every_round", ("no", 1)),
        (RouterConfig, "learned", ("yes", None)),
        (RouterConfig, "seed", (0.5, "1", True)),
    ],
)
def test_a_value_that_cannot_be_names_its_field(
    config: type[Any], field: str, values: tuple[object, ...]
) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{field}="):
            config(**{field: value})


def test_what_is_usual_or_whole_is_taken() -> None:
    config = SamplingConfig(temperature=1, top_p=1, stop_token_ids=(1, 2), logprobs=0)
    assert hash(config) == hash(SamplingConfig(temperature=1.0, stop_token_ids=(1, 2), logprobs=0))
    assert RouterConfig(balance=1, entropy_threshold=math.inf).name == "auto"
