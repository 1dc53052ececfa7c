"""Which operators took the time, from the trace that ONNX Runtime writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

KERNEL = "_kernel_time"
"""The end of the names of events that are an operator's computation."""


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes of one operator."""

    name: str
    calls: int
    milliseconds: float
    share: float
    """Of all operators' time."""


class _Event(msgspec.Struct):
    name: str
    cat: str
    dur: float = 0.0
    args: dict[str, Any] = {}


def operators(trace: Path) -> list[Operator]:
    """Operators by the time they took, from a trace in the format of Chrome's tracing; times in it are microseconds."""
    calls: dict[str, int] = {}
    spent: dict[str, float] = {}
    for event in msgspec.json.decode(trace.read_bytes(), type=list[_Event]):
        if event.cat == "Node" and event.name.endswith(KERNEL):
            name = str(event.args["op_name"])
            calls[name] = calls.get(name, 0) + 1
            spent[name] = spent.get(name, 0.0) + event.dur
    total = sum(spent.values()) or 1.0
    return [
        Operator(name=name, calls=calls[name], milliseconds=spent[name] / 1e3, share=spent[name] / total)
        for name in sorted(spent, key=lambda name: -spent[name])
    ]


def table(found: Sequence[Operator]) -> str:
    """As lines to read."""
    lines = [f"{'operator':<32} {'calls':>8} {'ms':>10} {'share':>7}"]
    lines += [f"{row.name:<32} {row.calls:>8} {row.milliseconds:>10.2f} {row.share:>7.1%}" for row in found]
    return "\n".join(lines)
