"""A bundle's version and its acceptance vectors, which a torch model of the same weights agrees with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_export.pack import Storage, make_bundle
from edge_sdk.deploy.acceptance import ACCEPTANCE, STEPS, add_acceptance, check, error_of
from edge_sdk.deploy.record import version_of
from edge_sdk.errors import ConfigError, DeployError
from exported import bundle_of
from tiny import make


def test_a_bundle_is_exported_with_a_version_and_vectors(tmp_path: Path) -> None:
    model = make("plain")
    plain = bundle_of(model, Storage(cache_dtype="float32"), tmp_path)
    assert version_of(plain.manifest) == "0"
    paths = tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "bundle"
    with pytest.raises(ConfigError, match="A version"):
        make_bundle(*paths, version="next")
    bundle = make_bundle(*paths, version="1.4", acceptance=True)
    assert version_of(bundle.manifest) == "1.4"
    assert check(bundle, device="cpu").error < 1e-4
    with np.load(bundle.file(ACCEPTANCE)) as arrays, torch.inference_mode():
        expected = model(torch.from_numpy(arrays["input_ids"])).numpy()[:, -STEPS:]
        errors = [error_of(found, wanted) for found, wanted in zip(arrays["logits"], expected)]
    assert max(errors) < 1e-4
    assert bundle.model_id == plain.model_id


def test_a_model_that_sees_has_no_vectors(sighted: Path) -> None:
    with pytest.raises(DeployError, match="expected a model of text, found one that sees"):
        add_acceptance(sighted / "bundle")
