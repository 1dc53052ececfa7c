"""What each way of storing a model costs: bytes, and how close to the float model it stays on given sequences."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from edge_export.calibration import Sequences, compare
from edge_export.pack import Storage
from edge_export.plan import Level, Plan, quantizable, total_bytes
from edge_export.quantize import Convert, convert
from edge_export.terminal import console
from edge_export.torch_model import HybridLM
from edge_sdk.model import ModelConfig

POSITIONS = 4096
"""In the caches whose bytes are reported; fewer where the model's context is shorter."""

EXACT = Storage(cache_dtype="float32", state_dtype="float32")


@dataclass(frozen=True)
class Setting:
    """One way of storing a model; ``make`` None leaves its weights as they are."""

    name: str
    leaves: dict[str, Level]
    make: Convert | None = None
    states: Storage | None = None
    """How states and caches are stored, for what is compared step by step; None: whole sequences at once."""


def settings(
    config: ModelConfig, block_size: int, plan: Plan | None = None, folder: Path | None = None
) -> list[Setting]:
    """What a report compares: weights alone, states and caches alone, and the plan's weights without and with them."""
    floats: dict[str, Level] = dict.fromkeys(quantizable(config), "float32")
    found = [Setting("float32", floats)]
    for level in ("int8", "int4"):
        leaves: dict[str, Level] = dict.fromkeys(floats, level) | {"lm_head": "int8"}
        rounded = Plan(checkpoint="", block_size=block_size, method="rtn", leaves=leaves)
        found.append(Setting(rounded.label, leaves, rounded.convert(None)))
    found += [Setting(name, floats, None, states) for name, states in _stored_states(config)]
    if plan is not None:
        make, states = plan.convert(folder), Storage(cache_dtype=plan.cache_dtype, state_dtype=plan.state_dtype)
        name = f"plan: {plan.label}"
        found.append(Setting(name, plan.leaves, make))
        found.append(Setting(f"{name}, cache {plan.cache_dtype}, state {plan.state_dtype}", plan.leaves, make, states))
    return found


def _stored_states(config: ModelConfig) -> Iterator[tuple[str, Storage]]:
    """Ways of storing what this model has: keys and values, states of scans."""
    names = [spec.name for spec in config.past_specs()]
    if any(name.endswith(".key") for name in names):
        yield "cache float16", msgspec.structs.replace(EXACT, cache_dtype="float16")
        yield "cache int8", msgspec.structs.replace(EXACT, cache_dtype="int8")
    if any(name.endswith(".recurrent_state") for name in names):
        yield "state float16", msgspec.structs.replace(EXACT, state_dtype="float16")


def report(
    model: HybridLM, batches: Sequence[Sequences], compared: Sequence[Setting], block_size: int, step: int = 1
) -> list[dict[str, Any]]:
    """A row per setting: bytes of weights and of a sequence's states, perplexity, closeness to the float model.

    States and caches are compared by feeding ``step`` tokens at once. Needs the model in float32 twice.
    """
    rows = []
    for setting in compared:
        # without conversion another config, but the same weights
        changed = copy.copy(model) if setting.make is None else convert(copy.deepcopy(model), setting.make)
        changed.config = (setting.states or EXACT).describe(model.config)
        quality = compare(changed, model, batches, None if setting.states is None else step)
        sizes = {
            "bytes": total_bytes(model.config, setting.leaves, block_size),
            "state_bytes": changed.config.state_bytes(batch=1, capacity=min(POSITIONS, model.config.max_length)),
        }
        rows.append({"setting": setting.name, **sizes, **msgspec.to_builtins(quality)})
    return rows


def show_report(rows: Sequence[dict[str, Any]]) -> None:
    """The report as a table, if there is one."""
    if not rows:
        return
    table = Table("setting", "bytes", "bytes of states", "perplexity", "top-1 agreement", "KL (nats)")
    for row in rows:
        sizes = (f"{row['bytes']:,}", f"{row['state_bytes']:,}")
        table.add_row(
            row["setting"], *sizes, f"{row['perplexity']:.5f}", f"{row['top1_agreement']:.2%}", f"{row['kl']:.2e}"
        )
    console.print(table)
