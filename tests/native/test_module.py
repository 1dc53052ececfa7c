"""The kernels on NumPy arrays: every instruction set, any number of threads, states in place, wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_plugins import OPERATORS, Operator
from edge_plugins.native import _native
from edge_plugins.operator import Case

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "QLinear": _native.qlinear,
    "MoE": _native.moe,
    "Mamba2Mixer": _native.mamba2_mixer,
    "CachedAttention": _native.cached_attention,
}
CASES = [
    pytest.param(operator, case, id=f"{operator.name}-{case.name}")
    for operator in OPERATORS.values()
    for case in operator.make_cases()
]


def run(operator: Operator, case: Case, **settings: Any) -> tuple[np.ndarray, ...]:
    quantized = any(array.dtype == np.int8 for name, array in case.inputs.items() if name.endswith("weight"))
    if quantized and "int4" in case.name:
        settings["bits"] = 4
    if operator.name in ("QLinear", "MoE"):
        settings.setdefault("exact", True)
    result = FUNCTIONS[operator.name](**case.inputs, **case.attributes, **settings)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(("operator", "case"), CASES)
def test_results_do_not_depend_on_the_number_of_threads(operator: Operator, case: Case, isa: str) -> None:
    alone, *others = (run(operator, case, isa=isa, threads=threads) for threads in (1, 2, 5))
    for other in others:
        for expected, found in zip(alone, other):
            assert expected.tobytes() == found.tobytes()


@pytest.mark.parametrize(("operator", "case"), [case for case in CASES if "past_ssm" in case.values[1].inputs][:4])
def test_states_are_written_in_place_where_asked(operator: Operator, case: Case) -> None:
    expected = run(operator, case)
    copies = {name: array.copy() for name, array in case.inputs.items()}
    y, conv, ssm = FUNCTIONS[operator.name](**copies, **case.attributes, inplace=True)
    assert conv is copies["past_conv"]
    assert ssm is copies["past_ssm"]
    for found, want in zip((y, conv, ssm), expected):
        np.testing.assert_array_equal(found, want)
    frozen = copies["past_ssm"].view()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        FUNCTIONS[operator.name](**{**copies, "past_ssm": frozen}, **case.attributes, inplace=True)


def test_a_packed_matrix_takes_the_place_of_its_weights() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.integers(-8, 8, (64, 70)).astype(np.int8), rng.standard_normal((3, 64), dtype=np.float32)
    scales = rng.uniform(0.01, 0.1, (2, 70)).astype(np.float32)
    packed = _native.PackedMatrix(weight, scales, block_size=32, bits=4)
    assert packed.shape == (1, 64, 70)
    assert packed.bytes == 2 * (64 * 64 // 2 + 2 * 64 * 4)
    direct = _native.qlinear(x=x, weight=weight, scales=scales, block_size=32, bits=4)
    np.testing.assert_array_equal(_native.qlinear(x=x, weight=packed), direct)


def test_bfloat16_weights_are_uint16_or_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((64, 70)).astype(ml_dtypes.bfloat16), rng.standard_normal((3, 64), np.float32)
    found = _native.qlinear(x=x, weight=weight, exact=True)
    np.testing.assert_allclose(found, x @ weight.astype(np.float32), atol=1e-4)
    np.testing.assert_array_equal(_native.qlinear(x=x, weight=weight.view(np.uint16), exact=True), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 32), np.float32)}, "x: expected the shape"),
        ({"weight": np.zeros((64, 70), np.float64)}, "found float64"),
        ({"scales": None}, "scales: expected with integers"),
        ({"scales": np.zeros((3, 70), np.float32)}, "scales: expected the shape"),
        ({"block_size": 48}, "block"),
        ({"isa": "abacus"}, "expected one of auto"),
        ({"threads": 0}, "threads: expected at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "x": np.zeros((2, 64), np.float32),
        "weight": np.zeros((64, 70), np.int8),
        "scales": np.zeros((2, 70), np.float32),
        "block_size": 32,
    }
    _native.qlinear(**right)
    with pytest.raises(ValueError, match=message):
        _native.qlinear(**right | change)
