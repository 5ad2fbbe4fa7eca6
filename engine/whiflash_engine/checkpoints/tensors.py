"""Reading safetensors folders, and the one place that says which tensors must be there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.foreign import refuse_pickles, refuse_pointer
from whiflash_engine.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
Shape = tuple[int, ...]


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, sharded or not, on the CPU in its stored dtype.

    Raises CheckpointError, naming file (and tensor), for a folder without safetensors, a
    truncated file, a tensor twice, or an index that its shards do not keep.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        return _merged(safetensors_files(folder))
    listed = Fields.read(index).sub("weight_map")
    places = {name: listed.text(name) for name in listed.values}
    shards = sorted(set(places.values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise CheckpointError(index, f"names {shard!r}, which is not in the folder")
    tensors = _merged([folder / shard for shard in shards])
    for name, shard in places.items():
        if name not in tensors:
            raise CheckpointError(folder / shard, f"lacks tensor {name!r}, which the index names")
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file. Raises CheckpointError if it is damaged."""
    tensors: dict[str, Tensor] = {}
    try:
        refuse_pointer(path)
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (the handle itself is not iterable)
                tensors[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(path, f"is truncated or not a safetensors file ({error})") from error
    return tensors


def check_tensors(
    where: Path,
    tensors: Mapping[str, Tensor],
    required: Mapping[str, Shape],
    optional: Mapping[str, Shape] | None = None,
) -> None:
    """Refuse a missing, an unexpected or a misshapen tensor by name.

    An unexpected tensor is refused because it means a variant of the model that would run,
    but wrongly.
    """
    allowed = {**required, **(optional or {})}
    missing = sorted(required.keys() - tensors.keys())
    if missing:
        raise CheckpointError(where, f"lacks {_some(missing)}")
    unknown = sorted(tensors.keys() - allowed.keys())
    if unknown:
        raise CheckpointError(where, f"holds {_some(unknown)}, which this model has no use for")
    for name, tensor in tensors.items():
        shape = allowed[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                where, f"tensor {name!r} has shape {list(tensor.shape)}, not {list(shape)}"
            )
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(where, f"tensor {name!r} is {tensor.dtype}, not a plain float")


_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files of a folder. Raises CheckpointError if there are none."""
    # Beside it may lie an adapter, or the same weights in the layout of another program.
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    refuse_pickles(folder)
    raise CheckpointError(folder, "holds no *.safetensors file")


def _merged(files: list[Path]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_file(file).items():
            if name in merged:
                raise CheckpointError(file, f"repeats tensor {name!r} of another file")
            merged[name] = tensor
    return merged


def _some(names: list[str], most: int = 4) -> str:
    """A readable list: a hundred names help nobody."""
    shown = ", ".join(repr(name) for name in names[:most])
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"tensor{'s' if len(names) > 1 else ''} {shown}{rest}"
