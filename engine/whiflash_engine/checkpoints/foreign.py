"""What lies in a folder where its safetensors should be, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from whiflash_engine.errors import CheckpointError

_POINTER = b"version https://git-lfs"
_USUAL = "pytorch_model.bin"


def refuse_pointer(path: Path) -> None:
    """CheckpointError for what Git leaves behind where it has no LFS."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                path, "is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
            )


def refuse_pickles(folder: Path) -> None:
    """CheckpointError for weights that only PyTorch's pickle holds: opening it can run code."""
    pickles = [path for kind in ("*.bin", "*.pt") for path in sorted(folder.glob(kind))]
    if not pickles:
        return
    usual = [path for path in pickles if path.name == _USUAL] or pickles
    raise CheckpointError(
        folder,
        "holds pickled PyTorch weights only, which can run code when opened; "
        "save the model again as safetensors" + (_conversion(usual[0]) if len(usual) == 1 else ""),
    )


def _conversion(pickle: Path) -> str:
    """Published EAGLE-3 heads come so. safetensors takes no views and no tensor twice."""
    weights = str(pickle.with_name("model.safetensors"))
    return f""", which these lines do without running any of it:

    import torch
    from safetensors.torch import save_file
    weights = torch.load({str(pickle)!r}, map_location="cpu", weights_only=True)
    weights = {{name: tensor.contiguous().clone() for name, tensor in weights.items()}}
    save_file(weights, {weights!r}, metadata={{"format": "pt"}})
"""
