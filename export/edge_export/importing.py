"""Writes an ordinary checkpoint from any readable one, tensor by tensor: what ``edge-export import`` does."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from edge_export.checkpoint import TOKENIZER_FILES, Checkpoint, TensorFiles, fingerprint, read_raw_config
from edge_export.weights import Progress, require_room, silent
from edge_sdk.files import new_file, resumable_directory

Dtype = Literal["bfloat16", "float32"]

SHARD_BYTES = 1 << 30
"""Of a file at most, where no tensor alone is larger; and so of the memory that is needed."""


def import_checkpoint(source: Path, target: Path, dtype: Dtype = "bfloat16", progress: Progress = silent) -> None:
    """Writes ``source`` to ``target``: sharded safetensors with an index, config.json, tokenizer files.

    Matrices get ``dtype``, what is quantised (FP8, NVFP4) is dequantised; vectors (norms, biases, the scan's
    parameters) stay as they are. In memory is one shard at a time. Interrupted, the next call goes on behind the last
    whole shard. Raises CheckpointError before anything is read if the checkpoint contradicts its config, and OSError
    before anything is written if the disk has no room.
    """
    files, raw = Checkpoint(source).files, read_raw_config(source)
    shards = _shards(files, getattr(torch, dtype).itemsize)
    names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    sizes = [sum(_bytes(files, name, dtype) for name in shard) for shard in shards]
    key = json.dumps({"checkpoint": fingerprint(source), "dtype": dtype, "shard_bytes": SHARD_BYTES})
    target.parent.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    with resumable_directory(target, key) as new:
        require_room(new, sum(size for size, name in zip(sizes, names) if not (new / name).exists()))
        for index, (shard, name) in enumerate(zip(shards, names)):
            if not (new / name).exists():
                _write_shard(files, shard, new / name, dtype)
            written |= dict.fromkeys(shard, name)
            progress(sum(sizes[: index + 1]), sum(sizes))
        _write_index(new, written, sum(sizes))
        raw.pop("quantization_config", None)
        raw.pop("torch_dtype", None)
        (new / "config.json").write_text(json.dumps(raw | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copy(source / name, new / name)


def _shards(files: TensorFiles, item_bytes: int) -> list[list[str]]:
    """Names of tensors by file, in the order of the source."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in files.items():
        size = math.prod(shape) * item_bytes
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _bytes(files: TensorFiles, name: str, dtype: Dtype) -> int:
    """At most: vectors may be stored in float32."""
    item = getattr(torch, dtype).itemsize if len(files[name]) > 1 else torch.float32.itemsize
    return math.prod(files[name]) * int(item)


def _write_shard(files: TensorFiles, names: Sequence[str], path: Path, dtype: Dtype) -> None:
    tensors: dict[str, Tensor] = {}
    for name in names:
        (tensor,) = files.read([name])
        matrix = tensor.ndim > 1 and tensor.is_floating_point()
        tensors[name] = tensor.to(getattr(torch, dtype)).contiguous() if matrix else tensor
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _write_index(folder: Path, written: dict[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": written}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
