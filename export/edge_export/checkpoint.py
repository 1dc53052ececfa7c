"""Reads and writes checkpoints in Hugging Face format: config.json, (sharded) safetensors, tokenizer files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edge_export.families import family_of
from edge_export.torch_model import HybridLM
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.files import new_directory
from edge_sdk.model import ModelConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def read_raw_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands."""
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            explain(str(folder), expected="a config.json", found="none", todo="Give a checkpoint's folder.")
        ) from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(explain(str(path), expected="a JSON object", found=error, todo="Repair it.")) from None


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder."""
    raw = read_raw_config(folder)
    config: ModelConfig = family_of(raw).parse_config(raw)
    return config


class TensorFiles(Mapping[str, tuple[int, ...]]):
    """The tensors of a folder's safetensors files, name -> shape, read one by one on demand."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(
                explain(str(folder), expected="*.safetensors files", found="none", todo="Download the weights.")
            )
        self._files: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    explain(str(path), expected="a safetensors file", found=error, todo="Copy it again.")
                ) from None
            self._files.update(dict.fromkeys(file.keys(), file))

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def __iter__(self) -> Any:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, name: str) -> Tensor:
        """The tensor in float32."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor.float()


def load_model(folder: Path) -> HybridLM:
    """The torch model of a checkpoint, in float32; every missing, misshapen or surplus tensor is named."""
    raw = read_raw_config(folder)
    family = family_of(raw)
    config = family.parse_config(raw)
    files = TensorFiles(folder)
    with torch.device("meta"):
        model = HybridLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    maps = list(family.tensor_maps(config))
    found = {_usual_name(name, getattr(family, "OTHER_PREFIXES", {})): name for name in files}
    problems = []
    for tensor_map in maps:
        for name in tensor_map.theirs:
            expected = tensor_map.their_shape(shapes[tensor_map.ours])
            if name not in found:
                problems.append(f"{name} is missing")
            elif files[found[name]] != expected:
                problems.append(f"{name} has shape {files[found[name]]} instead of {expected}")
    surplus = set(found) - {name for tensor_map in maps for name in tensor_map.theirs}
    problems += [
        f"{name} is not part of the model"
        for name in sorted(surplus)
        if not name.startswith(getattr(family, "IGNORED_PREFIXES", ()))
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            explain(str(folder), expected="the tensors that config.json describes", found=shown, todo="Check both.")
        )
    state = {item.ours: item.join([files.read(found[name]) for name in item.theirs]) for item in maps}
    if config.tie_embeddings:
        state["lm_head.weight"] = state["embeddings.weight"]
    for name, shape in shapes.items():
        if name not in state and name.endswith("conv_bias"):
            state[name] = torch.zeros(shape)
    model.load_state_dict(state, assign=True)  # the tensors themselves: a copy of a large model would not fit
    if config.tie_embeddings:
        model.lm_head.weight = model.embeddings.weight
    return model


def _usual_name(name: str, prefixes: Mapping[str, str]) -> str:
    for other, usual in prefixes.items():
        if name.startswith(other):
            return usual + name.removeprefix(other)
    return name


def save_model(model: HybridLM, folder: Path, *, tokenizer_from: Path | None = None) -> None:
    """Writes a checkpoint that transformers and :func:`load_model` read; replaces ``folder`` as a whole."""
    family = family_of({"model_type": model.config.family})
    ours = model.state_dict()
    theirs: dict[str, Tensor] = {}
    for tensor_map in family.tensor_maps(model.config):
        theirs |= tensor_map.split(ours[tensor_map.ours].detach())
    with new_directory(folder) as new:
        (new / "config.json").write_text(json.dumps(family.format_config(model.config), indent=2) + "\n")
        save_file(theirs, new / "model.safetensors", metadata={"format": "pt"})
        for name in TOKENIZER_FILES:
            if tokenizer_from is not None and (tokenizer_from / name).exists():
                shutil.copy(tokenizer_from / name, new / name)
