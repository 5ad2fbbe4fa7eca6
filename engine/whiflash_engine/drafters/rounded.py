"""Linear layers of drafters, with weights of eight bits where that is fast.

What a drafter says need not be exact: the target verifies it. At the widths of a draft a layer's
time is that of reading its weights, and a byte each is half of bfloat16. In float32 a kernel of
our own does it (`Linear`), which rounds x 32 numbers at a time, in bfloat16 torch's, which has one
scale for all of x.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from whiflash_engine.linear import Linear


class RoundedLinear:
    """y = x W^T: W (out, in) in eight bits with a scale per output; x in seven, with one scale
    for all of it, anew at every call."""

    def __init__(self, weight: Tensor) -> None:
        scales = weight.abs().amax(1).double().clamp_min(1e-8) / 127
        places = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():  # torch means to replace these tensors; see draft_linear
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight.float(), scales, places, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, None)

    def __call__(self, x: Tensor) -> Tensor:
        # eight bits for x would overflow sums of two products where a processor has no VNNI
        out: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self._packed, True)
        return out.to(x.dtype)


def draft_linear(weight: Tensor) -> Linear | RoundedLinear:
    """Rounded on a processor that is faster so; else as it is. Not for what reads the target's
    features, nor for the last product of an MLP: their inputs may hold single huge numbers, beside
    which nothing would be left of the others under one scale. A rounded `Linear` takes them, and in
    bfloat16 leaves them exact."""
    inexact = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    able = hasattr(torch, "quantize_per_channel") and torch.backends.quantized.engine == "x86"
    if inexact and able:
        return RoundedLinear(weight)
    return Linear(weight, rounded=True)
