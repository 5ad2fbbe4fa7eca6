"""y = x W^T + b, with W packed once for the processor at hand.

At the widths of a draft a product's time is that of reading W, once a pass. So projections are
fused, and a CPU gets W in the form that it reads fastest:

    bfloat16, by a kernel of our own     float32 on x86 with a C compiler, where bfloat16 holds W
    eight bits, by one                   there, where W may be rounded
    half precision, widened on the way   float32 on x86, where half precision holds W
    oneDNN's own order                   all else that oneDNN takes
    as it is                             GPUs, and what is left
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.kernels.cpu import kernels

# What a weight may lose: half of the step between half precision's smallest numbers, and of W's
# largest weight less than float32's sums of products lose.
_LOST: Final = 2.0**-25
_LOST_OF_LARGEST: Final = 2.0**-20
# oneDNN packs for a number of rows; others run on the same packing, as fast for 1 to 400.
_ROWS: Final = 8


class Linear:
    """W (out, in), b (out,); x (n, in) of W's type -> (n, out).

    packed: W and b where a kernel of our own reads them; else None.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, rounded: bool = False
    ) -> None:
        """rounded: in eight bits, and x as well, where a kernel of our own does that; see
        `rounds`."""
        self.shape: Final = (weight.shape[0], weight.shape[1])
        ours = rounds(weight.device, weight.dtype)
        own = kernels() if ours and (rounded or _is_bfloat16(weight)) else None
        self.packed: Final = None if own is None else own.pack(weight, bias, rounded=rounded)
        self._product: Callable[[Tensor], Tensor]
        if own is not None and self.packed is not None:
            self._product = partial(own.product, self.packed)
        else:
            self._product = _packed(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)


def rounds(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for products of eight bits."""
    return device.type == "cpu" and dtype == torch.float32 and kernels() is not None


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    if weight.device.type == "cpu" and _halves(weight):
        half = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        return partial(_half_product, half)
    if weight.device.type == "cpu" and _onednn_takes(weight.dtype):
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        return partial(_onednn_product, ordered, bias)
    return partial(F.linear, weight=weight, bias=bias)


def _half_product(packed: torch.ScriptObject, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
    return out


def _onednn_product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _is_bfloat16(weight: Tensor) -> bool:
    """Whether bfloat16 holds W to the last bit, as it does what was published in it."""
    rows = torch.split(weight, 4096)
    return all(bool((r.bfloat16().float() == r).all()) for r in rows)


def _halves(weight: Tensor) -> bool:
    """Whether W survives half precision, as what was published in float16 or bfloat16 does: of
    bfloat16 numbers below 8e-6 the last bits go, at most 3e-8."""
    able = hasattr(torch.ops.quantized, "linear_prepack_fp16")
    if weight.dtype != torch.float32 or not able or torch.backends.quantized.engine != "x86":
        return False
    most = min(_LOST, _LOST_OF_LARGEST * float(weight.abs().amax()))
    rows = torch.split(weight, 4096)
    return all(bool(((r.half().float() - r).abs() <= most).all()) for r in rows)


def _onednn_takes(dtype: torch.dtype) -> bool:
    """bfloat16 only on processors that have it."""
    if not torch._C._has_mkldnn:
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
