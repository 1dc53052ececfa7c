"""LLaVA checkpoints (arXiv 2310.03744): a CLIP or SigLIP tower, a projector, and a language model of another family.

Such a checkpoint is exported; it is not written back, and so neither pruned nor trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import msgspec

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.model import ModelConfig
from edge_sdk.vision_spec import ImageSpec, VisionSpec

FIXED = {"projector_hidden_act": "gelu"}

TOWER_FIXED = {"num_channels": 3}
TOWERS = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}
# image_seq_length: transformers counts the tokens itself, and writes 576 whatever the tower
IGNORED = common.names("ignore_index image_seq_length pad_token_id bos_token_id eos_token_id hidden_size vocab_size")
TOWER_IGNORED = common.names(
    "initializer_factor logit_scale_init_value num_patches projection_dim vision_use_head vocab_size"
)
"""What follows the layers whose output is read, and the text tower's size."""

OTHER_PREFIXES = {
    "model.vision_tower.vision_model.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "vision_tower.vision_model.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""As transformers names tensors in memory, and as older files do."""

CLIP_COLOURS: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


@common.strict(FIXED, ignored=IGNORED)
def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not support."""
    text = dict(common.get(raw, "text_config"))
    text["tie_word_embeddings"] = bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    language = _language(str(text.get("model_type"))).parse_config(text)
    tower = _tower(common.get(raw, "vision_config"), raw)
    image_token_id = raw.get("image_token_index") or common.get(raw, "image_token_id")
    spec = VisionSpec(
        language=language.family,
        projector_bias=raw.get("multimodal_projector_bias", True),
        image_token_id=image_token_id,
        **tower,
    )
    return msgspec.structs.replace(language, family="llava", vision=spec, mtp=None)


def _language(model_type: str) -> ModuleType:
    from edge_export.families import family_of  # which knows this module

    if model_type == "llava":
        raise CheckpointError(explain("text_config", expected="a language model", found=model_type, todo="Correct it."))
    return family_of({"model_type": model_type})


def _tower(raw: common.Config, whole: common.Config) -> dict[str, Any]:
    """The VisionSpec's fields that the tower's config says, and how its pictures are prepared unless a file says it."""
    settings = common.Settings(raw, {})
    kind = common.get(settings, "model_type")
    if kind not in TOWERS:
        raise CheckpointError(
            explain("vision_config's model_type", expected=" or ".join(TOWERS), found=kind, todo="It is not supported.")
        )
    common.require(settings, TOWER_FIXED)
    clip, layers = kind == "clip_vision_model", common.get(settings, "num_hidden_layers")
    chosen = whole.get("vision_feature_layer", -2)
    if not isinstance(chosen, int) or not -layers - 1 <= chosen <= layers:
        raise CheckpointError(
            explain("vision_feature_layer", expected=f"a layer of {layers}", found=chosen, todo="It is not supported.")
        )
    strategy = whole.get("vision_feature_select_strategy", "default")
    if strategy != "full" and not (strategy == "default" and clip):
        found = f"{strategy!r}, which would leave out the first patch" if not clip else strategy
        raise CheckpointError(
            explain("vision_feature_select_strategy", expected="full" + clip * " or default", found=found, todo="No.")
        )
    size = common.get(settings, "image_size")
    fields = {
        "tower": TOWERS[kind],
        "images": _default_images(clip, size),
        "patch": common.get(settings, "patch_size"),
        "hidden": common.get(settings, "hidden_size"),
        "heads": common.get(settings, "num_attention_heads"),
        "intermediate": common.get(settings, "intermediate_size"),
        "tower_layers": layers,
        "layers": chosen if chosen >= 0 else layers + 1 + chosen,
        "activation": settings.get("hidden_act", "quick_gelu" if clip else "gelu_pytorch_tanh"),
        "class_feature": clip and strategy == "full",
        "norm_eps": settings.get("layer_norm_eps", 1e-5 if clip else 1e-6),
    }
    settings.refuse_unread(TOWER_IGNORED)
    return fields


def _default_images(clip: bool, size: int) -> ImageSpec:
    if clip:
        return ImageSpec(height=size, width=size, fit="crop", shortest_edge=size, **CLIP_COLOURS)
    return ImageSpec(height=size, width=size)


def with_preprocessor(config: ModelConfig, folder: Path) -> ModelConfig:
    """The model with its pictures prepared as the checkpoint's preprocessor_config.json says, if it has one."""
    spec = config.vision
    assert spec is not None
    path = next((folder / name for name in PREPROCESSORS if (folder / name).exists()), None)
    if path is None:
        return config
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        images = _read_images(common.Settings(raw.get("image_processor", raw), {}))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            explain(str(path), expected="an image processor", found=error, todo="Repair it.")
        ) from None
    if (images.height, images.width) != (spec.images.height, spec.images.width):
        raise CheckpointError(
            explain(
                str(path),
                expected=f"pictures of {spec.images.height} x {spec.images.width}, as the tower's config has it",
                found=f"{images.height} x {images.width}",
                todo="Check both.",
            )
        )
    return msgspec.structs.replace(config, vision=msgspec.structs.replace(spec, images=images))


def _read_images(raw: common.Settings) -> ImageSpec:
    """An image processor of transformers, as CLIP's, SigLIP's and LLaVA's say it."""
    common.require(raw, {"do_resize": True, "do_convert_rgb": True, "pad_size": None})
    size, crop = raw.get("size"), raw.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size or {})
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop or {})
    normalised = raw.get("do_normalize", True)
    mean = tuple(raw.get("image_mean") or (0.5,) * 3) if normalised else (0.0,) * 3
    fields: dict[str, Any] = {
        "resample": RESAMPLE[raw.get("resample", 3)],
        "scale": raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0,
        "mean": mean,
        "std": tuple(raw.get("image_std") or (0.5,) * 3) if normalised else (1.0,) * 3,
    }
    padded, edge = raw.get("do_pad", False), size.get("shortest_edge")
    cropped = raw.get("do_center_crop", False) and edge is not None
    if padded and edge is not None:  # a square then, of which a crop as large leaves everything
        fields |= {"fit": "letterbox", "background": tuple(int(level * 255) for level in mean)}
        crop = {"height": edge, "width": edge}
    elif cropped:
        fields |= {"fit": "crop", "shortest_edge": edge}
    elif edge is not None:
        raise ValueError("pictures of any shape: size has only a shortest_edge, and nothing is cropped")
    else:
        crop = {"height": size["height"], "width": size["width"]}
    raw.refuse_unread(common.names("image_processor_type processor_class feature_extractor_type data_format"))
    return ImageSpec(height=crop["height"], width=crop["width"], **fields)


def format_config(config: ModelConfig) -> NoReturn:
    """Refuses: towers are not written back."""
    raise CheckpointError(
        explain(
            "A model that sees",
            expected="to be exported as it is",
            found="a changed one, which is not written back",
            todo="Train or prune the language model before it is joined to a tower.",
        )
    )


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Which tensors of the checkpoint make each of ours; the encoder's are called ``vision.`` and so on."""
    spec = config.vision
    assert spec is not None
    family = _language(spec.language)
    names = getattr(family, "OTHER_PREFIXES", {})
    for item in family.tensor_maps(config):
        theirs = tuple(f"language_model.{_as_wrapped(name, names)}" for name in item.theirs)
        yield TensorMap(item.ours, theirs, item.layout)
    yield from _tower_maps(spec)
    for name in ("linear_1", "linear_2"):
        kinds = ["weight", "bias"] if spec.projector_bias else ["weight"]
        yield from common.same(f"vision.{name}", f"multi_modal_projector.{name}", kinds)


def _as_wrapped(name: str, prefixes: dict[str, str]) -> str:
    """The name within transformers' own classes, which are what LLaVA's holds."""
    for other, usual in prefixes.items():
        if name.startswith(usual):
            return other + name.removeprefix(usual)
    return name


def _tower_maps(spec: VisionSpec) -> Iterator[TensorMap]:
    theirs, clip = "vision_tower.embeddings", spec.tower == "clip"
    yield from common.same("vision", theirs, ["patch_embedding.weight"] + ([] if clip else ["patch_embedding.bias"]))
    yield TensorMap("vision.position_embedding", (f"{theirs}.position_embedding.weight",))
    if clip:
        yield TensorMap("vision.class_embedding", (f"{theirs}.class_embedding",))
        for kind in ("weight", "bias"):  # the misspelling is transformers'
            yield TensorMap(f"vision.pre_norm.{kind}", (f"vision_tower.pre_layrnorm.{kind}",))
    for index in range(spec.layers):
        block = f"vision_tower.encoder.layers.{index}"
        for part in ("", "self_attn.", "mlp."):
            names = {"": "layer_norm1 layer_norm2", "self_attn.": "q_proj k_proj v_proj out_proj", "mlp.": "fc1 fc2"}
            parts = [f"{name}.{kind}" for name in names[part].split() for kind in ("weight", "bias")]
            yield from common.same(f"vision.layers.{index}", f"{block}.{part}".rstrip("."), parts)


def is_unused(name: str, config: ModelConfig) -> bool:
    """Whether a tensor belongs to what comes behind the layers whose output is read."""
    assert config.vision is not None
    layer, _, _ = name.removeprefix("vision_tower.encoder.layers.").partition(".")
    if name.startswith("vision_tower.encoder.layers.") and layer.isdigit():
        return int(layer) >= config.vision.layers
    return name.startswith(("vision_tower.post_layernorm.", "vision_tower.head.")) or name.endswith(".position_ids")
