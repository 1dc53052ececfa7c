"""Weights that a checkpoint stores quantised, as NVIDIA publishes them: FP8 and NVFP4, dequantised as they are read.

Two writers' names are known. NVIDIA Model Optimizer (config.json's ``quantization_config`` or hf_quant_config.json)
stores ``weight`` with ``weight_scale`` and, for NVFP4, the tensor's own ``weight_scale_2``; compressed-tensors calls
NVFP4's ``weight_packed``, ``weight_scale`` and ``weight_global_scale``, the last one inverted. What a tensor is
follows from the tensors beside it and their types, so excluded and mixed layers need no list. The scales of
activations and of the key-value cache belong to products in FP8 and are dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_sdk.errors import CheckpointError, explain

ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4")
"""Model Optimizer's names of what is read here."""

FORMATS = ("float-quantized", "nvfp4-pack-quantized", "naive-quantized", "dense")
"""compressed-tensors' names of it; "mixed-precision" is the formats of its groups."""

NVFP4_BLOCK = 16
"""Values along the input width that share an FP8 scale."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of the 16 codes of a 4-bit float: sign, two bits of exponent, one of mantissa (OCP MX, section 5.3.3)."""

DECODE_BYTES = {"plain": 0, "fp8": 13, "nvfp4": 10}
"""Per value, by a Recipe's kind: in memory at the most while it is decoded."""

DROPPED = ("input_scale", "output_scale", "q_scale", "k_scale", "v_scale", "input_global_scale")
"""Last names of the scales that are not of weights."""


TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a safetensors file's header describes it; ``dtype`` in safetensors' words."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type in torch's words."""
        return TORCH_DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True)
class Recipe:
    """How a logical tensor is made of stored ones, the values first; ``kind``: "plain", "fp8" or "nvfp4".

    ``inverted``: NVFP4's float32 scale of the whole tensor divides instead of multiplying.
    """

    kind: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    inverted: bool = False

    def decode(self, parts: list[Tensor]) -> Tensor:
        """The tensor: as it is stored if plain, else float32."""
        if self.kind == "plain":
            return parts[0]
        if self.kind == "fp8":
            return decode_fp8(parts[0], parts[1])
        return decode_nvfp4(parts[0], parts[1], 1.0 / parts[2].float() if self.inverted else parts[2].float())


def decode_fp8(values: Tensor, scale: Tensor) -> Tensor:
    """E4M3 values (out, in) times their scale: of the tensor (), of rows (out) or (out, 1), or of square-ish blocks.

    Blocks: scale (out / rows, in / columns), also with axes of length 1 between, as Model Optimizer writes it.
    """
    scale = scale.float()
    if scale.numel() == 1:
        return values.float() * scale.reshape(())
    if scale.ndim == 1:
        return values.float() * scale[:, None]
    scale = scale.reshape(scale.shape[0], -1)
    rows, columns = (-(-size // count) for size, count in zip(values.shape, scale.shape))
    wide = scale.repeat_interleave(rows, 0)[: values.shape[0]].repeat_interleave(columns, 1)[:, : values.shape[1]]
    return values.float() * wide


def decode_nvfp4(packed: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """Pairs of E2M1 (out, in / 2), the first in the low half, times E4M3 scales (out, in / 16) and the tensor's."""
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    values = torch.tensor(E2M1)[codes.int()]
    blocks = values.unflatten(-1, (-1, NVFP4_BLOCK)) * (scales.float() * tensor_scale.reshape(()))[..., None]
    return blocks.flatten(-2)


def quantization_config(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its quantisation: config.json's entry, or hf_quant_config.json's, or nothing."""
    if raw.get("quantization_config"):
        return dict(raw["quantization_config"])
    path = folder / "hf_quant_config.json"
    if not path.exists():
        return {}
    try:
        return {"quant_method": "modelopt"} | dict(json.loads(path.read_text(encoding="utf-8"))["quantization"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            explain(str(path), expected='JSON with a "quantization"', found=repr(error), todo="Copy it again.")
        ) from None


def check_algorithm(config: Mapping[str, Any]) -> None:
    """Refuses by name a way of quantising that is not read here; an empty config says that nothing is quantised."""
    if not config:
        return
    method = config.get("quant_method")
    if method == "modelopt":
        known: tuple[str, ...] = ALGORITHMS
        named = dict(_modelopt_algorithms(config))
    elif method == "compressed-tensors":
        known = FORMATS
        named = dict(_compressed_formats(config))
    else:
        known, named = ("modelopt", "compressed-tensors"), {"quant_method": method}
    for where, name in named.items():
        if name not in known:
            raise CheckpointError(
                explain(
                    f"The checkpoint's quantisation ({where})",
                    expected=f"one of {', '.join(known)}",
                    found=repr(name),
                    todo="Take the bfloat16 checkpoint.",
                )
            )


def _modelopt_algorithms(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    algorithm = config.get("quant_algo")
    if algorithm == "MIXED_PRECISION":
        layers = config.get("quantized_layers") or {}
        yield from ((layer, str(settings.get("quant_algo")).upper()) for layer, settings in layers.items())
    elif algorithm is not None:  # none: only the cache is quantised
        yield "quant_algo", str(algorithm).upper()


def _compressed_formats(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    groups = config.get("config_groups") or {}
    named = {name: group.get("format") for name, group in groups.items() if group.get("format")}
    if config.get("format") != "mixed-precision" or not named:
        named["format"] = config.get("format")
    yield from named.items()
    for name, group in groups.items():
        # "naive-quantized" says little: only floats of eight bits are meant here.
        weights = group.get("weights") or {}
        if weights.get("type") != "float":
            yield f"{name}'s weights", f"{weights.get('type')}{weights.get('num_bits')}"


def recipes(stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> dict[str, Recipe]:
    """Every logical tensor of a checkpoint, by its name. Raises CheckpointError naming each scale that is missing."""
    check_algorithm(config)
    made: dict[str, Recipe] = {}
    for name, tensor in stored.items():
        prefix, _, last = name.rpartition(".")
        if last == "weight_packed":
            sources = (name, f"{prefix}.weight_scale", f"{prefix}.weight_global_scale")
            made[f"{prefix}.weight"] = Recipe("nvfp4", sources, _unpacked(tensor), inverted=True)
        elif tensor.dtype == "U8" and config:
            made[name] = Recipe("nvfp4", (name, f"{name}_scale", f"{name}_scale_2"), _unpacked(tensor))
        elif tensor.dtype == "F8_E4M3" and last != "weight_scale":
            made[name] = Recipe("fp8", (name, f"{name}_scale"), tensor.shape)
        elif not config or last not in DROPPED:
            made[name] = Recipe("plain", (name,), tensor.shape)
    used = {source for recipe in made.values() if recipe.kind != "plain" for source in recipe.sources}
    made = {name: recipe for name, recipe in made.items() if recipe.kind != "plain" or name not in used}
    _check_scales(stored, made)
    return made


def _unpacked(tensor: StoredTensor) -> tuple[int, ...]:
    return (*tensor.shape[:-1], tensor.shape[-1] * 2)


def _check_scales(stored: Mapping[str, StoredTensor], made: Mapping[str, Recipe]) -> None:
    problems = [f"{source} is missing" for recipe in made.values() for source in recipe.sources if source not in stored]
    for name, recipe in made.items():
        scales = stored.get(recipe.sources[1]) if recipe.kind == "nvfp4" else None
        expected = (*recipe.shape[:-1], recipe.shape[-1] // NVFP4_BLOCK)
        if scales is not None and scales != StoredTensor(expected, "F8_E4M3"):
            problems.append(f"the scales of {name} are {scales.dtype} {scales.shape} instead of F8_E4M3 {expected}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            explain("The quantised weights", expected="their scales", found=shown, todo="Copy the checkpoint again.")
        )
