"""The CUDA kernels as runners of the operator matrix: on a model of a GPU, which any machine can build and run."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from builds import build
from edge_plugins import Operator
from edge_plugins.operator import Array, Case, dtype_of
from matrix import BFLOAT16, FLOAT32, INT4, Outputs, Run, Runner, on_torch

SCHEDULES = (0, 1, 7)
"""Orders in which the model runs threads: forward, backward, shuffled."""

HALVES = ("float16", "bfloat16")
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to the type."""


@lru_cache
def module() -> Any:
    """The test module on the model of a GPU, built now."""
    import pybind11

    name, suffix = "_cuda_emulated", sysconfig.get_config_var("EXT_SUFFIX")
    headers = f"{sysconfig.get_paths()['include']};{pybind11.get_include()}"
    options = (f"-DEDGE_PYTHON_INCLUDE={headers}", f"-DEDGE_PYTHON_SUFFIX={suffix}")
    spec = importlib.util.spec_from_file_location(name, build("cuda", "cuda_module", *options) / f"{name}{suffix}")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def runner(type: str = "float32", schedule: int = 0, **settings: Any) -> Runner:
    """The kernels with activations of this type under this schedule; settings are those of the module's function."""

    def make(operator: Operator, case: Case) -> Run:
        name = "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(operator.name))
        function: Callable[..., Any] = getattr(module(), FUNCTIONS.get(operator.name, name))
        integers = {"bits": 4} if any(array.dtype == INT4 for array in case.inputs.values()) else {}

        def run(inputs: Mapping[str, Array]) -> Outputs:
            module().set_schedule(schedule)
            arrays = {name: array.astype(np.int8) if array.dtype == INT4 else array for name, array in inputs.items()}
            result = function(**arrays, **case.attributes, **integers, **settings, type=type)
            outputs = result if isinstance(result, tuple) else (result,)
            return tuple(array.astype(FLOAT32) if array.dtype == BFLOAT16 else array for array in outputs)

        return run

    return make


FUNCTIONS = {"MoE": "moe", "QLinear": "qlinear"}
"""Of the module, where the name does not follow from the operator's."""


def rounded(case: Case, names: Sequence[str], type: str) -> dict[str, Array]:
    """The case's inputs, the named ones in a narrower type."""
    return {name: array.astype(dtype_of(type)) if name in names else array for name, array in case.inputs.items()}


def as_float32(inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """The same numbers, the named ones as float32."""
    return {name: array.astype(FLOAT32) if name in names else array for name, array in inputs.items()}


def assert_as_good_as_plain(
    operator: Operator, case: Case, names: Sequence[str], type: str, *, schedule: int = 0
) -> None:
    """Errors against float64 at most twice those of the plain computation in this type, beyond one rounding.

    ``names``: the inputs that the plain computation has in this type. All start from the same rounded numbers.
    """
    narrow = rounded(case, names, type)
    exact = as_float32(narrow, names)
    with np.errstate(all="ignore"):  # a poisoned row overflows
        expected = operator.reference(**exact, **case.attributes)
        plain = on_torch(operator, case)(narrow)
    found = runner(type, schedule)(operator, case)(exact)
    for name, got, want, usual in zip(operator.outputs_of(case.variant), found, expected, plain):
        spoilt = [] if case.poisoned_row is None else [case.poisoned_row]
        got, want, usual = (np.delete(array.astype(np.float64), spoilt, axis=0) for array in (got, want, usual))
        if want.size == 0:
            continue
        floor = ROUNDING[type] * max(1.0, float(np.abs(want).max()))
        assert np.abs(got - want).max() <= 2 * np.abs(usual - want).max() + floor, name
