"""Runs the small cases of every operator, in every precision: what compute-sanitizer watches.

PYTHONPATH=.:plugins:export:tests:tests/plugins python tests/gpu/selection.py gpu
"""

from __future__ import annotations

import sys

from cuda import HALVES, runner
from devices import choose_device
from edge_plugins import OPERATORS
from edge_plugins.mamba2_mixer.op import make_case as mamba2_case
from edge_plugins.operator import Case
from edge_plugins.qlinear.op import make_case as qlinear_case

SMALL = 20_000
"""Numbers in a case's inputs up to which it is run: the sanitizers slow kernels down a hundredfold."""

MORE = {
    "Mamba2Mixer": [mamba2_case("chunks", heads=2, head_dim=64, groups=1, state=64, length=70)],
    "QLinear": [qlinear_case("int4", (tokens,), 320, 64, 32) for tokens in (1, 20)],
}
"""Cases for the tensor cores, where the operator's own small ones do not reach them."""


def selection() -> list[tuple[str, Case]]:
    """Operators' names and cases."""
    return [
        (operator.name, case)
        for operator in OPERATORS.values()
        for case in (*operator.make_cases(), *MORE.get(operator.name, []))
        if case in MORE.get(operator.name, []) or sum(array.size for array in case.inputs.values()) <= SMALL
    ]


def main() -> None:
    choose_device(sys.argv[1])
    count = 0
    for name, case in selection():
        operator = OPERATORS[name]
        for type in ("float32", *HALVES):
            runner(type)(operator, case)(case.inputs)
            count += 1
    print(f"{count} ran")


if __name__ == "__main__":
    main()
