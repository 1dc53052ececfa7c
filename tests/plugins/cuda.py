"""The CUDA kernels as runners of the operator matrix, on the device that was chosen (``--device``, devices.py)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from devices import capability, chosen_device, emulated_module, gpu_module, ptx_machine, ptx_module
from edge_plugins import Operator
from edge_plugins.operator import Array, Case, dtype_of
from matrix import BFLOAT16, FLOAT32, INT4, Outputs, Run, Runner, on_torch

FORWARD, BACKWARD, SHUFFLED = SCHEDULES = (0, 1, 7)
"""Orders in which the model runs a block's threads; the last is a seed. PTX finds races itself and knows two orders."""

HALVES = ("float16", "bfloat16")
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to the type."""

FUNCTIONS = {
    "CachedAttention": "cached_attention",
    "Mamba2Mixer": "mamba2_mixer",
    "MoE": "moe",
    "QLinear": "qlinear",
}


@lru_cache
def module() -> Any:
    """The test module, compiled now where that is needed."""
    modules = {"ptx": ptx_module, "emulated": emulated_module, "gpu": lambda: gpu_module(capability())}
    return modules[chosen_device()]()


def set_schedule(schedule: int) -> None:
    """The order of threads, or of warps and blocks; a GPU has its own, and what is compared there are two runs."""
    if chosen_device() == "emulated":
        module().set_schedule(schedule)
    elif chosen_device() == "ptx":
        ptx_machine().edge_ptx_set_backward(schedule != FORWARD)


def runner(type: str = "float32", schedule: int = FORWARD, *, arrivals: bool = True, **settings: Any) -> Runner:
    """The kernels with activations of this type, under this schedule; settings are those of the module's function.

    Without arrivals (native/arrivals.h) there is a launch more where blocks finish together what each has begun.
    """

    def make(operator: Operator, case: Case) -> Run:
        function: Callable[..., Any] = getattr(module(), FUNCTIONS[operator.name])
        given = {"bits": 4, **settings} if any(array.dtype == INT4 for array in case.inputs.values()) else settings

        def run(inputs: Mapping[str, Array]) -> Outputs:
            set_schedule(schedule)
            arrays = {name: array.astype(np.int8) if array.dtype == INT4 else array for name, array in inputs.items()}
            call = function(**arrays, **case.attributes, **given, type=type)
            if not arrivals:
                call.leave_out_arrivals()
            result = call.run()
            outputs = result if isinstance(result, tuple) else (result,)
            return tuple(array.astype(FLOAT32) if array.dtype == BFLOAT16 else array for array in outputs)

        return run

    return make


def rounded(case: Case, names: Collection[str], type: str) -> dict[str, Array]:
    """The case's inputs, the named ones in a narrower type."""
    return {name: array.astype(dtype_of(type)) if name in names else array for name, array in case.inputs.items()}


def as_float32(inputs: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
    """The same numbers, the named ones as float32."""
    return {name: array.astype(FLOAT32) if name in names else array for name, array in inputs.items()}


def assert_as_good_as_plain(
    operator: Operator, case: Case, type: str, names: Collection[str], *, schedule: int = FORWARD
) -> None:
    """Errors against float64 at most twice those of the plain computation in ``type``, beyond one rounding.

    All start from the same numbers, rounded to ``type`` where named: the inputs that the plain computation, torch on
    the CPU, has in it. Errors are compared by their root mean square. Of single ones the largest may be eight times as
    large: where terms cancel each other, what is left of them is a matter of luck in either computation.
    """
    narrow = rounded(case, names, type)
    exact = as_float32(narrow, names)
    with np.errstate(all="ignore"):  # a poisoned row overflows
        expected = operator.reference(**exact, **case.attributes)
        plain = on_torch(operator, case)(narrow)
    found = runner(type, schedule)(operator, case)(exact)
    spoilt = [] if case.poisoned_row is None else [case.poisoned_row]
    for name, *arrays in zip(operator.outputs_of(case.variant), found, expected, plain):
        got, want, usual = (np.delete(array.astype(np.float64), spoilt, axis=0) for array in arrays)
        rounding = ROUNDING[type] * max(1.0, float(np.abs(want).max()))
        error, allowed = np.abs(got - want), np.abs(usual - want)
        assert np.sqrt((error**2).mean()) <= 2 * np.sqrt((allowed**2).mean()) + rounding / 4, name
        assert error.max() <= 8 * allowed.max() + rounding, name
