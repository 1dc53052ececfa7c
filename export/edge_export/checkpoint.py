"""Reads and writes checkpoints in Hugging Face format: config.json, (sharded) safetensors, tokenizer files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edge_export.families import family_of
from edge_export.families.llava import PREPROCESSORS, with_preprocessor
from edge_export.models import make_model
from edge_export.prequantized import StoredTensor, quantization_config, recipes
from edge_export.torch_model import HybridBody, HybridLM
from edge_export.vision import VisionEncoder
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.files import new_directory, sha256
from edge_sdk.model import ModelConfig

log = logging.getLogger("edge_export")

CONFIG = "config.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    *PREPROCESSORS,
)


def read_raw_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands: a checkpoint folder's, or a file by itself."""
    path = folder if folder.is_file() else folder / CONFIG
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            explain(str(folder), expected="a config.json", found="none", todo="Give a checkpoint's folder.")
        ) from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(explain(str(path), expected="a JSON object", found=error, todo="Repair it.")) from None


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder or of a config.json by itself."""
    return _parse(folder, read_raw_config(folder))


def _parse(folder: Path, raw: Mapping[str, Any]) -> ModelConfig:
    config: ModelConfig = family_of(dict(raw)).parse_config(raw)
    return config if config.vision is None else with_preprocessor(config, folder)


class TensorFiles(Mapping[str, tuple[int, ...]]):
    """The tensors of a folder's safetensors files, name -> shape, read on demand.

    Those that ``quantization`` (a config.json's ``quantization_config``) stores as FP8 or NVFP4 are float32 tensors
    here, and their scales are not seen (:mod:`edge_export.prequantized`).
    """

    def __init__(self, folder: Path, quantization: Mapping[str, Any] | None = None) -> None:
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(
                explain(str(folder), expected="*.safetensors files", found="none", todo="Download the weights.")
            )
        stored: dict[str, StoredTensor] = {}
        self._paths: dict[str, Path] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        part = file.get_slice(name)
                        stored[name] = StoredTensor(tuple(part.get_shape()), part.get_dtype())
                        self._paths[name] = path
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    explain(str(path), expected="a safetensors file", found=error, todo="Copy it again.")
                ) from None
        self._stored = stored
        self._recipes = recipes(stored, quantization or {})

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._recipes[name].shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def kind(self, name: str) -> str:
        """How a tensor is stored: "plain", "fp8" or "nvfp4"."""
        return self._recipes[name].kind

    def quantized(self, name: str) -> bool:
        """Whether a tensor is stored as FP8 or NVFP4."""
        return self.kind(name) != "plain"

    def stored_bytes(self, name: str) -> int:
        """Of a tensor in the files, its scales included."""
        return sum(self._stored[source].nbytes for source in self._recipes[name].sources)

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor as it is read."""
        return torch.float32 if self.quantized(name) else self._stored[name].torch_dtype

    def read(self, names: Sequence[str]) -> list[Tensor]:
        """Tensors as they are stored, or dequantised. Files are mapped only until the tensors are freed."""
        wanted = [source for name in names for source in self._recipes[name].sources]
        read: dict[str, Tensor] = {}
        for path in {self._paths[name] for name in wanted}:
            with safe_open(path, framework="pt") as file:
                read |= {name: file.get_tensor(name) for name in wanted if self._paths[name] == path}
        return [
            recipe.decode([read[name] for name in recipe.sources]) for recipe in (self._recipes[name] for name in names)
        ]


VISION_PREFIX = "vision."
"""What stands before the names of VisionEncoder's tensors, beside those of HybridLM."""


class Checkpoint:
    """A checkpoint folder whose tensors are those that its config describes; none is read before it is asked for.

    Raises CheckpointError that names every missing, misshapen or surplus tensor.
    """

    vision_names: Sequence[str] = ()
    """Those of the encoder, where the model sees."""

    def __init__(self, folder: Path) -> None:
        raw = read_raw_config(folder)
        family = family_of(raw)
        self.config = _parse(folder, raw)
        self.files = TensorFiles(folder, quantization_config(folder, raw))
        self._found = {_usual_name(name, getattr(family, "OTHER_PREFIXES", {})): name for name in self.files}
        self._leave_out_missing_head(getattr(family, "MTP_PREFIX", ""))
        with torch.device("meta"):
            model = make_model(self.config)
            encoder = None if self.config.vision is None else VisionEncoder(self.config.vision, self.config.hidden)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if encoder is not None:
            self.vision_names = [f"{VISION_PREFIX}{name}" for name in encoder.state_dict()]
            shapes |= dict(zip(self.vision_names, (tuple(tensor.shape) for tensor in encoder.state_dict().values())))
            self._found = {name: file for name, file in self._found.items() if not family.is_unused(name, self.config)}
        self._maps = {item.ours: item for item in family.tensor_maps(self.config)}
        problems = self._problems(shapes)
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise CheckpointError(
                explain(str(folder), expected="the tensors that config.json describes", found=shown, todo="Check both.")
            )
        self.shapes = shapes
        """Of ``HybridLM``'s tensors and the encoder's, by name."""

    def _leave_out_missing_head(self, prefix: str) -> None:
        """Adapts the config to files without a drafting head, and forgets one that the config does not describe."""
        head = [name for name in self._found if prefix and name.startswith(prefix)]
        if self.config.mtp is None:
            for name in head:
                del self._found[name]
        elif not head:
            log.warning("config.json describes a drafting head, but no file holds its %s* tensors: left out", prefix)
            self.config = msgspec.structs.replace(self.config, mtp=None)

    def _problems(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        problems = []
        for item in self._maps.values():
            expected = item.their_shape(shapes[item.ours])
            for name in item.theirs:
                if name not in self._found:
                    problems.append(f"{name} is missing")
                elif self.files[self._found[name]] != expected:
                    problems.append(f"{name} has shape {self.files[self._found[name]]} instead of {expected}")
        surplus = set(self._found) - {name for item in self._maps.values() for name in item.theirs}
        return problems + [f"{name} is not part of the model" for name in sorted(surplus)]

    def tensor(self, name: str) -> Tensor:
        """A tensor of ``HybridLM`` or of the encoder, in the type that it is stored in; float32 if FP8 or NVFP4."""
        sources = self.sources(name)
        if not sources:
            return torch.zeros(self.shapes[name])
        return self._maps[self._stored_name(name)].join(self.files.read(sources))

    def sources(self, name: str) -> list[str]:
        """The tensors in :attr:`files` that make one of them; none for the bias of a biasless convolution."""
        item = self._maps.get(self._stored_name(name))
        return [] if item is None else [self._found[theirs] for theirs in item.theirs]

    def _stored_name(self, name: str) -> str:
        return "embeddings.weight" if name == "lm_head.weight" and self.config.tie_embeddings else name


def fingerprint(folder: Path) -> str:
    """Hash of a checkpoint's config and all its weight files. Raises CheckpointError for a folder without a config."""
    read_raw_config(folder)
    return "+".join(sha256(part)[:16] for part in hashed_files(folder))


def hashed_files(folder: Path) -> list[Path]:
    """What :func:`fingerprint` reads."""
    return [folder / CONFIG, *sorted(folder.glob("*.safetensors"))]


def load_model(folder: Path) -> HybridLM:
    """A language model as :func:`load_body` has it. Raises CheckpointError for another model."""
    model = load_body(folder)
    if not isinstance(model, HybridLM):
        raise CheckpointError(
            explain(str(folder), expected="a language model", found="a policy", todo="Choose another.")
        )
    return model


def load_body(folder: Path) -> HybridBody:
    """The torch model of a checkpoint, in float32. Raises CheckpointError as :class:`Checkpoint` does."""
    checkpoint = Checkpoint(folder)
    with torch.device("meta"):
        model = make_model(checkpoint.config)
    state = {name: checkpoint.tensor(name).float() for name in model.state_dict()}
    model.load_state_dict(state, assign=True)  # the tensors themselves: a copy of a large model would not fit
    model.tie()
    return model


def _usual_name(name: str, prefixes: Mapping[str, str]) -> str:
    for other, usual in prefixes.items():
        if name.startswith(other):
            return usual + name.removeprefix(other)
    return name


def save_model(model: HybridBody, folder: Path, *, tokenizer_from: Path | None = None) -> None:
    """Writes a checkpoint that transformers and :func:`load_model` read; replaces ``folder`` as a whole."""
    family = family_of({"model_type": model.config.family})
    raw = family.format_config(model.config)
    ours = model.state_dict()
    theirs: dict[str, Tensor] = {}
    for tensor_map in family.tensor_maps(model.config):
        theirs |= tensor_map.split(ours[tensor_map.ours].detach())
    with new_directory(folder) as new:
        (new / CONFIG).write_text(json.dumps(raw, indent=2) + "\n")
        save_file(theirs, new / "model.safetensors", metadata={"format": "pt"})
        for name in TOKENIZER_FILES:
            if tokenizer_from is not None and (tokenizer_from / name).exists():
                shutil.copy(tokenizer_from / name, new / name)
