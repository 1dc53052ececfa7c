"""Models that see: LLaVA checkpoints that transformers made, in torch and as graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from edge_export.checkpoint import VISION_PREFIX, Checkpoint, load_model, read_config, save_model
from edge_export.families import llava
from edge_export.pack import Storage, export_graph
from edge_export.vision import VisionEncoder
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.errors import CheckpointError, ConfigError
from sighted import IMAGE_TOKEN, SIDE, make_checkpoint, make_sighted, tower
from test_families import DECODER
from tiny import relative_error

TOLERANCE = 1e-4
STEPS = 10

TOWERS: dict[str, dict[str, Any]] = {
    "siglip": {"kind": "siglip"},
    "clip": {"kind": "clip"},
    "clip-class": {"kind": "clip", "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    "first-layer": {"kind": "siglip", "vision_feature_layer": 1, "tower": {"hidden_act": "gelu"}},
    "no-bias": {"kind": "clip", "multimodal_projector_bias": False, "vision_feature_layer": -3},
}


def pictures(count: int = 2) -> torch.Tensor:
    """pixel_values (count, 3, SIDE, SIDE)."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", TOWERS)
def test_every_tower_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, **TOWERS[name])
    source = Checkpoint(checkpoint)
    spec = source.config.vision
    assert spec is not None
    encoder = VisionEncoder(spec, source.config.hidden)
    encoder.load_state_dict({key.removeprefix(VISION_PREFIX): source.tensor(key) for key in source.vision_names})
    reference = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.stack(list(reference.get_image_features(pictures()).pooler_output))
        found = encoder(pictures())
    assert found.shape == expected.shape == (2, spec.tokens, source.config.hidden)
    assert relative_error(found, expected) <= TOLERANCE
    assert spec.parameters(source.config.hidden) == sum(value.numel() for value in encoder.parameters())


def prompt(tokens: int) -> list[int]:
    """Text, an image, text, another image, text."""
    image = [IMAGE_TOKEN] * tokens
    return [7, 8, 9, *image, 10, 11, *image, 12, 13]


@pytest.mark.parametrize(
    ("kind", "language", "text"),
    [
        ("siglip", "qwen3", {}),
        ("clip", "llama", {"tie_word_embeddings": True}),
        ("siglip", "granitemoehybrid", {"logits_scaling": 1.0}),  # which transformers forgets here
    ],
)
def test_a_prompt_with_images_and_cached_steps_agree(
    kind: str, language: str, text: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind, language, text=text)
    bundle = make_sighted(checkpoint, tmp_path, Storage(cache_dtype="float32"))
    assert set(bundle.manifest.graphs) == {"embed.onnx", "vision.onnx"}
    engine = OrtEngine(bundle, exact=True)
    spec = bundle.manifest.model.vision
    assert spec is not None
    ids = prompt(spec.tokens)
    features = engine.image_features(pictures().numpy())
    embedded = engine.embed(np.array([ids]))
    embedded[:, np.array(ids) == IMAGE_TOKEN] = features.reshape(1, -1, features.shape[-1])
    states = engine.empty_states(1)
    found = [engine.step(embedded[:, :12], states, "all").copy(), engine.step(embedded[:, 12:], states, "all").copy()]
    answer = [int(token) for token in np.random.default_rng(0).integers(6, 48, STEPS)]
    found += [engine.step(np.array([[token]]), states).copy() for token in answer]
    reference = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        whole = torch.tensor([[*ids, *answer]])
        expected = reference(input_ids=whole, pixel_values=pictures()).logits
    assert relative_error(torch.from_numpy(np.concatenate(found, axis=1)), expected) <= TOLERANCE


def test_a_quantised_language_model_shares_its_file_with_a_float_tower(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    bundle = make_sighted(checkpoint, tmp_path, Storage(weights="int8", cache_dtype="float32"))
    engine = OrtEngine(bundle, exact=True)
    features = engine.image_features(pictures().numpy())
    reference = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.stack(list(reference.get_image_features(pictures()).pooler_output))
    assert relative_error(torch.from_numpy(features), expected) <= TOLERANCE


def write_preprocessor(folder: Path, **settings: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def test_pictures_are_prepared_as_the_checkpoint_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw_config()))

    def images() -> Any:
        vision = read_config(tmp_path).vision
        assert vision is not None
        return vision.images

    assert (images().fit, images().mean) == ("stretch", (0.5, 0.5, 0.5))
    edge = {"size": {"shortest_edge": 60}, "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True}
    write_preprocessor(tmp_path, **edge, resample=2, image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 1])
    assert (images().fit, images().shortest_edge, images().resample) == ("crop", 60, "bilinear")
    padded = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE, "do_center_crop": True, "do_pad": True}
    write_preprocessor(tmp_path, **padded, image_mean=[0.5, 0.25, 0.0], image_std=[1, 1, 1])
    assert (images().fit, images().background) == ("letterbox", (127, 63, 0))
    wrong: dict[str, object]
    for wrong in ({**edge, "crop_size": 30}, {**edge, "resample": 1}, {**edge, "do_thumbnail": True}, {"size": []}):
        write_preprocessor(tmp_path, **wrong)
        with pytest.raises(CheckpointError):
            read_config(tmp_path)


def raw_config(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llava",
        "image_token_index": IMAGE_TOKEN,
        "vision_feature_select_strategy": "full",
        "vision_config": tower("siglip"),
        "text_config": {"model_type": "llama", **DECODER},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vision_config": tower("dinov2")}, "vision_config's model_type"),
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"text_config": {"model_type": "gemma"}}, "model_type"),
        ({"tiles": 4}, "tiles"),
        ({"vision_config": tower("siglip", rope=True)}, "rope"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        llava.parse_config(raw_config(**changes))


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="speculation"):
        export_graph(checkpoint, tmp_path / "onnx", Storage(speculation=True))
    with pytest.raises(CheckpointError, match="not written back"):
        save_model(load_model(checkpoint), tmp_path / "again")
