"""Rotary position embedding far from the beginning, held to float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from edge_export.torch_layers import ROPE_STRIDE, Rope, inverse_wavelengths
from edge_sdk.model import RopeSpec

SPECS = (
    RopeSpec(dims=128),
    RopeSpec(dims=32, theta=5e6, factor=4.0),
    RopeSpec(dims=64, theta=5e5, factor=8.0, original_length=8192),
)
LATE = torch.cat([torch.arange(999_000, 1_000_100), torch.arange(2**20 - 100, 2**20), torch.arange(2**24 - 9, 2**24)])


def turned_exactly(x: torch.Tensor, positions: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
    """RopeSpec's turn in complex float64: channel i and i + dims / 2 are the parts of one number."""
    angles = positions[:, :, None, None].double() * inverse_wavelengths(spec)
    first, second = x.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("spec", SPECS)
def test_late_positions_are_turned_as_float64_says(spec: RopeSpec) -> None:
    positions = LATE[None]
    x = torch.randn(1, positions.shape[1], 2, spec.dims, generator=torch.Generator().manual_seed(0))
    found, expected = Rope(spec)(x, positions), turned_exactly(x, positions, spec)
    late = positions[0] >= 2**20
    assert (found - expected)[:, ~late].abs().max() < 2e-3
    assert (found - expected)[:, late].abs().max() < 2e-2
    plain = (positions[..., None].float() * inverse_wavelengths(spec).float()).double()
    exact = positions[..., None].double() * inverse_wavelengths(spec)
    assert (plain.cos() - exact.cos()).abs().max() > 0.02  # what the split is for


@pytest.mark.parametrize("spec", SPECS)
def test_early_positions_have_the_angles_of_the_plain_product(spec: RopeSpec) -> None:
    positions = torch.arange(ROPE_STRIDE)[None]
    plain = positions[..., None].float() * inverse_wavelengths(spec).float()
    assert torch.equal(Rope(spec).angles(positions), plain)


def test_the_graph_turns_alike() -> None:
    spec, positions = SPECS[0], LATE[None]
    x = torch.randn(1, positions.shape[1], 1, spec.dims, generator=torch.Generator().manual_seed(1))
    program = torch.onnx.export(Rope(spec).eval(), (x, positions), dynamo=True, verbose=False, opset_version=21)
    assert program is not None
    (found,) = ReferenceEvaluator(program.model_proto).run(
        None, dict(zip((value.name for value in program.model.graph.inputs), (x.numpy(), positions.numpy())))
    )
    np.testing.assert_allclose(found, Rope(spec)(x, positions).numpy(), atol=1e-5)
