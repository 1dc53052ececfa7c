"""The Mamba-2 mixer's CUDA kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuda import BACKWARD, FORWARD, HALVES, SCHEDULES, SHUFFLED, assert_as_good_as_plain, module, runner
from edge_plugins.mamba2_mixer.op import MAMBA2_MIXER, make_case, make_cases
from edge_plugins.operator import Case, poison
from matrix import expected_of
from test_operators import LENGTH, assert_agree, in_parts

PLAIN = ("proj", "conv_weight", "conv_bias", "norm_weight", "past_conv")
"""What the plain computation has in the type of the activations."""

CASES = [pytest.param(case, id=case.name) for case in make_cases()]
LARGE = 500_000
"""Multiplications of a case from which it is run under one schedule alone."""

CHUNKED = [
    make_case("chunks-64", heads=2, head_dim=64, groups=1, state=128, length=150),
    make_case("chunks-80", heads=2, head_dim=80, groups=1, state=64, length=100, batch=2),
    make_case("chunks-128", heads=1, head_dim=128, groups=1, state=256, length=70),
    make_case("chunks-uneven-parts", heads=1, head_dim=144, groups=1, state=16, length=65),
    make_case("chunks-padded-state", heads=4, groups=2, state=80, length=64),
    make_case("chunks-kernel-3", kernel=3, length=20, batch=2),
    make_case("chunks-limits", length=40, dt_limits=(0.01, 0.1)),
    make_case("chunks-float16-state", length=30, state_dtype="float16"),
    make_case("chunks-bfloat16-state", length=130, state_dtype="bfloat16"),
    poison(make_case("chunks-row", batch=3, length=70), 1, np.nan, "proj", "past_ssm"),
    poison(make_case("chunks-row", batch=3, length=70), 1, np.inf, "past_conv"),
]
"""Beyond the operator's own cases: long enough, and of sizes, for tensor cores."""

ODD = [
    make_case("odd-sizes", heads=6, head_dim=5, groups=3, state=7, kernel=3, length=3, batch=2),
    make_case("odd-state-step", heads=3, head_dim=9, groups=1, state=33, length=1, state_dtype="float16"),
    make_case("largest-state", heads=2, head_dim=3, groups=2, state=256, length=2),
    make_case("many-taps", kernel=7, length=12),
    make_case("few-tokens-many-taps", kernel=7, length=2),
    make_case("one-channel", heads=1, head_dim=1, groups=1, state=1, kernel=2, length=2),
]
"""Sizes that no tensor core and no 16 bytes take."""


def work(case: Case) -> int:
    return case.inputs["past_ssm"].size * max(1, case.inputs["proj"].shape[1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, id=case.name) for case in ODD)])
def test_agrees_with_the_float64_reference(case: Case, schedule: int) -> None:
    if schedule != FORWARD and work(case) > LARGE:
        pytest.skip("a case of this size runs under one schedule")
    found = runner(schedule=schedule)(MAMBA2_MIXER, case)(case.inputs)
    assert_agree(MAMBA2_MIXER, case, found, expected_of(MAMBA2_MIXER, case))


@pytest.mark.parametrize("type", HALVES)
@pytest.mark.parametrize("case", [*make_cases(), *CHUNKED, *ODD], ids=lambda case: case.name)
def test_half_precision_is_as_good_as_torchs(case: Case, type: str) -> None:
    if case.name == "nothing":
        pytest.skip("torch cannot do this")
    assert_as_good_as_plain(MAMBA2_MIXER, case, type, PLAIN)


@pytest.mark.parametrize("schedule", [BACKWARD, SHUFFLED])
@pytest.mark.parametrize("case", [CHUNKED[0], CHUNKED[3], CHUNKED[5]], ids=lambda case: case.name)
def test_chunks_do_not_depend_on_the_order_of_threads(case: Case, schedule: int) -> None:
    expected = runner("bfloat16")(MAMBA2_MIXER, case)(case.inputs)
    for found, want in zip(runner("bfloat16", schedule)(MAMBA2_MIXER, case)(case.inputs), expected):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("length", [0, 1, 2, 70])
def test_states_may_be_written_in_place(length: int, type: str) -> None:
    case = make_case("in-place", length=length, batch=2, state=32)
    apart = runner(type)(MAMBA2_MIXER, case)(case.inputs)
    for schedule in SCHEDULES:
        in_place = runner(type, schedule, inplace=True)(MAMBA2_MIXER, case)(case.inputs)
        for found, want in zip(in_place, apart):
            np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("lengths", [[1] * LENGTH, [7, 1, 32], [39, 1], [3, 37], [20, 20]], ids=str)
@pytest.mark.parametrize("type", ["float32", "bfloat16"])
def test_any_split_gives_the_same(lengths: list[int], type: str) -> None:
    case = make_case("split", batch=2, length=LENGTH)
    run = runner(type)(MAMBA2_MIXER, case)
    found = in_parts(run, MAMBA2_MIXER, case, lengths)
    if type == "float32":
        assert_agree(MAMBA2_MIXER, case, found, expected_of(MAMBA2_MIXER, case))
        return
    for part, whole in zip(found, run(case.inputs)):
        np.testing.assert_allclose(part, whole, atol=2.0**-6 * max(1.0, float(np.abs(whole).max())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"past_ssm": np.zeros((1, 4, 16, 272), np.float32), "conv_dim": 1152}, "a state of 1 to 256"),
        ({"past_ssm": np.zeros((1, 4, 16, 16), np.int8)}, "a state in float32"),
        ({"groups": 3}, "heads to be a multiple of groups"),
        ({"conv_weight": np.zeros((128, 1), np.float32)}, "at least 2 taps"),
        ({"type": "int8"}, "float32, float16 or bfloat16"),
    ],
    ids=["state", "state type", "groups", "taps", "type"],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], message: str) -> None:
    case = make_case("refused")
    arguments = {**case.inputs, **case.attributes, **change}
    if "conv_dim" in change:
        arguments["conv_weight"] = np.zeros((change["conv_dim"], 4), np.float32)
    with pytest.raises(ValueError, match=message):
        module().mamba2_mixer(**arguments).run()
