"""A policy without recurrent layers or attention has no states, and is a graph all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from policies import MLP, VECTOR, bundle_of, make_policy, schema


def test_its_graph_computes_what_torch_does_for_one_observation_or_many(tmp_path: Path) -> None:
    model = make_policy(schema("regression", (VECTOR,)), layers=[MLP, MLP])
    bundle_of(model, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for length in (1, 5):
        fed = {
            "observation.state": rng.normal(size=(2, length, 3)).astype(np.float32),
            "past_length": np.zeros(2, np.int64),
            "action_positions": np.array([length - 1]),
            "committed": np.zeros((2, 1, 6, 2), np.float32),
            "committed_length": np.zeros((2, 1), np.int64),
        }
        with torch.no_grad():
            expected, present = model.step({name: torch.from_numpy(value) for name, value in fed.items()}, ())
        assert len(present) == 0
        names = {item.name for item in session.get_inputs()}
        (found,) = session.run(None, {name: value for name, value in fed.items() if name in names})
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
