"""Kernels whose last block finishes what all of them began (native/arrivals.cuh) do what two launches do.

The operator matrix has them as they are; after every call it sees to it that all counters are 0 again.
"""

from __future__ import annotations

import numpy as np
import pytest

from cuda import SCHEDULES, runner
from edge_plugins import OPERATORS, mamba2_mixer, moe, qlinear
from edge_plugins.operator import Case

CASES = [
    ("Mamba2Mixer", mamba2_mixer.op.make_case("token", heads=12, head_dim=80, state=128, length=1)),
    ("Mamba2Mixer", mamba2_mixer.op.make_case("tokens", heads=6, groups=3, state=32, length=1, batch=3)),
    ("QLinear", qlinear.op.make_case("int4", (1,), 768, 160, 32)),
    ("QLinear", qlinear.op.make_case("bfloat16", (8,), 640, 136)),
    ("MoE", moe.op.make_case("experts", (1, 3), 6, top_k=3, weights="int4", width=1056)),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_the_last_block_does_what_another_launch_does(name: str, case: Case, schedule: int) -> None:
    operator = OPERATORS[name]
    found, expected = (
        runner("bfloat16", schedule, arrivals=arrivals)(operator, case)(case.inputs) for arrivals in (True, False)
    )
    for array, want in zip(found, expected):
        np.testing.assert_allclose(array, want, rtol=2.0**-7, atol=2.0**-12)
