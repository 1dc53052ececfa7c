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

from edge_export.checkpoint import CONFIG, TOKENIZER_FILES, Checkpoint, TensorFiles, fingerprint, read_raw_config
from edge_export.dry_run import require_room
from edge_export.weights import Progress, silent
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
    shards = shards_of(files, dtype)
    names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    sizes = [sum(stored_bytes(files, name, dtype) for name in shard) for shard in shards]
    require_room(target, sum(sizes))
    key = json.dumps({"checkpoint": fingerprint(source), "dtype": dtype, "shard_bytes": SHARD_BYTES})
    target.parent.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    with resumable_directory(target, key) as new:
        for index, (shard, name) in enumerate(zip(shards, names)):
            if not (new / name).exists():
                _write_shard(files, shard, new / name, dtype)
            written |= dict.fromkeys(shard, name)
            progress(sum(sizes[: index + 1]), sum(sizes))
        _write_index(new, written, sum(sizes))
        raw.pop("quantization_config", None)
        raw.pop("torch_dtype", None)
        (new / CONFIG).write_text(json.dumps(raw | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copy(source / name, new / name)


def shards_of(files: TensorFiles, dtype: Dtype) -> list[list[str]]:
    """Names of tensors by file to be written, in the order of the source."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in files:
        size = stored_bytes(files, name, dtype)
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def stored_bytes(files: TensorFiles, name: str, dtype: Dtype) -> int:
    """Of a tensor in the file that is written."""
    return math.prod(files[name]) * _stored_dtype(files, name, dtype).itemsize


def _stored_dtype(files: TensorFiles, name: str, dtype: Dtype) -> torch.dtype:
    """The type asked for if it is a matrix of floats, else its own."""
    own = files.dtype(name)
    wanted: torch.dtype = getattr(torch, dtype)
    return wanted if len(files[name]) > 1 and own.is_floating_point else own


def _write_shard(files: TensorFiles, names: Sequence[str], path: Path, dtype: Dtype) -> None:
    tensors: dict[str, Tensor] = {}
    for name in names:
        (tensor,) = files.read([name])
        tensors[name] = tensor.to(_stored_dtype(files, name, dtype)).contiguous()
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _write_index(folder: Path, written: dict[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": written}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
