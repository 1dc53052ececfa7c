"""The bundles of policies that the control benchmark runs: of stated sizes, with random weights, which cost the same.

    python benchmarks/control_policies.py build/bench/policies

In the workstation's environment; a bundle that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import torch

from control_arm import policy_schema
from edge_export.checkpoint import save_model
from edge_export.families import policy
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.torch_policy import HybridPolicy
from edge_sdk.bundle import Bundle

MAX_LENGTH = 4096
"""Observations of an episode that attention can look back on: 20 s at 200 Hz."""


def layers(pattern: str, hidden: int) -> list[dict[str, Any]]:
    """In Nemotron's letters: M Mamba-2, * attention, - MLP; sizes in proportion to the width."""
    known = {
        "M": {"type": "mamba2", "heads": hidden // 32, "head_dim": 64, "groups": 1, "state": 64},
        "*": {"type": "attention", "heads": hidden // 32, "kv_heads": hidden // 64, "head_dim": 32},
        "-": {"type": "mlp", "intermediate": 4 * hidden},
    }
    return [known[letter] for letter in pattern]


def description(pattern: str, hidden: int, head: str = "regression") -> dict[str, Any]:
    """A policy's config.json: one decoder block, as ACT has one, and four steps of flow matching."""
    decoder = {"layers": 1, "heads": hidden // 32, "head_dim": 32, "intermediate": 4 * hidden, "flow_steps": 4}
    schema = msgspec.to_builtins(policy_schema(head))
    return {
        "model_type": policy.FAMILY,
        "hidden": hidden,
        "layers": layers(pattern, hidden),
        "max_length": MAX_LENGTH,
        "policy": {"schema": schema, "encoder": {"width": hidden}, "decoder": decoder},
    }


SIZES = {
    "small": description("M-M-M-", 128),
    "small-flow": description("M-M-M-", 128, "flow_matching"),
    "medium": description("M-*-M-M-", 256),
    "large": description("M-M-*-M-M-", 512),
}
"""What benchmarks/control.py runs, by name."""


def make(config: dict[str, Any], folder: Path) -> Bundle:
    """A bundle with random weights in float32."""
    model = HybridPolicy(policy.parse_config(config))
    model.reset_parameters(0)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, graph = Path(scratch) / "checkpoint", Path(scratch) / "onnx"
        save_model(model.eval(), checkpoint)
        export_graph(checkpoint, graph, Storage())
        return make_bundle(checkpoint, graph, folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder for the bundles")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.sizes:
        if not (options.out / name).exists():
            bundle = make(SIZES[name], options.out / name)
            print(f"{bundle.path}: {bundle.manifest.model.parameters():,} parameters")


if __name__ == "__main__":
    main()
