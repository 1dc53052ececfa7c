"""benchmarks/gpu_ops.py: its own code on the model of a GPU, its workloads' sizes, its table on recorded times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devices import emulated_module
from gpu_ops import Row, table
from gpu_workloads import Workload, attention, mamba2, moe, qlinear, workloads
from places import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_ops.py"


def test_it_runs_on_the_model_of_a_gpu(tmp_path: Path) -> None:
    module = emulated_module().__file__
    assert module is not None
    command = [sys.executable, SCRIPT, "--device", "emulated", "--module", module, "--rounds", "2", "--out", tmp_path]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "gpu_ops.json").read_text())
    assert {row["workload"].split()[0] for row in report["rows"]} == {
        "Mamba2Mixer", "MoE", "QLinear", "CachedAttention"
    }  # fmt: skip
    assert all(row["seconds"] > 0 for row in report["rows"]), report["rows"]
    assert (tmp_path / "gpu_ops.md").read_text() == table(report)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (mamba2(1, 1, heads=2, head_dim=16, groups=1, state=16), {"past_ssm": 2, "past_conv": 2}),
        (qlinear(1, 1, width=64, out=32), {}),
        (attention(1, 1, past=1000, heads=4, kv_heads=2, head_dim=16), {}),
        (moe(1, 1, experts=4, top_k=4, width=32, intermediate=64, bits=16), {}),
    ],
    ids=lambda item: item.operator if isinstance(item, Workload) else "",
)
def test_the_bytes_are_those_of_the_tensors(work: Workload, expected: dict[str, int]) -> None:
    """Weights and caches once, states twice, activations as halves: counted from the arrays, within what is written."""
    halves = {"proj", "x", "query", "key", "value"}
    total = 0.0
    for name, array in work.make(np.random.default_rng(0)).items():
        width = 2 if name in halves else 0.5 if array.dtype == np.int8 else array.itemsize
        total += array.size * width * expected.get(name, 1)
    written = work.bytes - total
    assert -0.001 * total <= written <= 0.1 * total + 4 * 1024


def test_decoding_is_counted_in_bytes_and_prefill_in_operations() -> None:
    assert {work.operator for work in workloads()} == {"mamba2_mixer", "moe", "qlinear", "cached_attention"}
    names = [work.name for work in workloads()]
    assert len(set(names)) == len(names)
    prefill = mamba2(1, 2048, heads=64, head_dim=64, groups=8, state=128)
    assert prefill.flops == 4 * 2048 * 64 * 64 * 128


def test_the_table_of_recorded_times() -> None:
    rows = [
        Row("scan, batch 8", "Edge SDK", True, 2e-6, 4_000_000, 0),
        Row("scan, batch 8", "theirs", True, 3e-6, 4_000_000, 0),
        Row("scan, 2048 tokens", "Edge SDK", False, 1e-3, 1, 5 * 10**11),
        Row("scan, 2048 tokens", "peer", False, None, 1, 1, "left out: No module named 'mamba_ssm'"),
    ]
    report = {"machine": {"GPU": "recorded"}, "copy_bytes_per_second": 2.5e12, "rows": [vars(row) for row in rows]}
    assert table(report).splitlines() == [
        "* GPU: recorded",
        "* copy within the device: 2,500 GB/s, read and written",
        "",
        "| | | µs | GB/s | of the copy's | TFLOP/s | ours is faster by |",
        "|---|---|---|---|---|---|---|",
        "| scan, batch 8 | Edge SDK | 2.0 | 2,000 | 80% |  |  |",
        "| scan, batch 8 | theirs | 3.0 | 1,333 | 53% |  | 1.50 |",
        "| scan, 2048 tokens | Edge SDK | 1,000.0 |  |  | 500.00 |  |",
        "| scan, 2048 tokens | peer | left out: No module named 'mamba_ssm' | | | | |",
    ]
