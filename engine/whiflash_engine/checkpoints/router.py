"""Learned routers: ours (a folder), and the published single-output form (folder or file).

Ours:       config.json {"hidden_size", "structure", "positions": {arm: count}} beside
            model.safetensors with fc1.weight, fc1.bias, fc2.weight, fc2.bias, and mean and scale:
            the first layer is given (x - mean) * scale.
Published:  two linears with biases, d -> m -> 1 (WhiFlash-Neural, arXiv 2606.07710). The names of
            its tensors are not documented, so they are told by their shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import check_tensors, read_file, read_folder
from whiflash_engine.config import ArmName
from whiflash_engine.errors import CheckpointError
from whiflash_engine.router.neural import STRUCTURE, RouterNet
from whiflash_engine.router.perceptron import Array, Perceptron

CONFIG = "config.json"


def load_router(path: Path, hidden_size: int) -> RouterNet | Perceptron:
    """`Perceptron` for the published form. CheckpointError for what is neither, or was made for
    another hidden size."""
    if path.is_dir() and (path / CONFIG).is_file() and Fields.read(path / CONFIG).has("positions"):
        return _ours(path, hidden_size)
    return _published(path, hidden_size)


def _ours(folder: Path, hidden_size: int) -> RouterNet:
    fields = Fields.read(folder / CONFIG)
    for key, wanted in (("hidden_size", hidden_size), ("structure", STRUCTURE)):
        found = fields.integer(key)
        if found != wanted:
            raise fields.fail(key, f"the router was made for {found}, here it is {wanted}")
    positions = fields.sub("positions")
    counts = {cast(ArmName, arm): positions.integer(arm) for arm in positions.values}
    if not counts or not counts.keys() <= set(get_args(ArmName)) or min(counts.values()) < 1:
        raise fields.fail("positions", f"{dict(positions.values)} are not arms with their counts")
    tensors = read_folder(folder)
    inputs, outputs = hidden_size + STRUCTURE, sum(counts.values())
    first = tensors.get("fc1.weight")
    width = 1 if first is None or first.ndim != 2 else first.shape[0]
    check_tensors(
        folder, tensors,
        {"mean": (inputs,), "scale": (inputs,), "fc1.weight": (width, inputs),
         "fc1.bias": (width,), "fc2.weight": (outputs, width), "fc2.bias": (outputs,)},
    )  # fmt: skip
    # the first layer takes the inputs as they come: their norm becomes part of it
    weight = tensors["fc1.weight"].float() * tensors["scale"].float()
    bias = tensors["fc1.bias"].float() - weight @ tensors["mean"].float()
    second = (tensors["fc2.weight"], tensors["fc2.bias"])
    return RouterNet(Perceptron(*map(_array, (weight, bias, *second))), counts)


def _published(path: Path, hidden_size: int) -> Perceptron:
    tensors = read_folder(path) if path.is_dir() else read_file(path)
    by_shape: dict[int, list[Tensor]] = {1: [], 2: []}
    for tensor in tensors.values():
        by_shape.setdefault(tensor.ndim, []).append(tensor)
    matrices = sorted(by_shape[2], key=lambda t: t.shape[0], reverse=True)
    biases = sorted(by_shape[1], key=len, reverse=True)
    shapes = [tuple(t.shape) for t in (*matrices, *biases)]
    middle = shapes[0][0] if shapes else 0
    wanted = [(middle, hidden_size), (1, middle), (middle,), (1,)]
    if len(tensors) != len(shapes) or shapes != wanted or middle < 2:
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise CheckpointError(
            path,
            f"is no router for hidden size {hidden_size} (two linears, to m and to 1): {found}",
        )
    return Perceptron(*map(_array, (matrices[0], biases[0], matrices[1], biases[1])))


def _array(tensor: Tensor) -> Array:
    return tensor.float().numpy()
