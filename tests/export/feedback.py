"""A task whose answer is known: a damped linear system under linear feedback; every chunk follows from the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_export.episodes import Episode
from edge_export.families import policy
from edge_export.torch_policy import HybridPolicy
from edge_export.training import Schedule
from edge_sdk.control.normalization import Normalization
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from policies import raw_config

GAIN = np.array([[-0.9, 0.4], [0.3, -1.2]])
CLOSED_LOOP = np.array([[0.95, 0.12], [-0.12, 0.9]])
CHUNK = 5


def schema(head: str = "regression") -> PolicyConfig:
    state = ObservationSpec(
        name="state",
        shape=(2,),
        normalization=Normalization(mode="MEAN_STD", stats={"mean": (1.0, -2.0), "std": (0.5, 1.5)}),
    )
    dims = (ActionDim(name="left", unit="N"), ActionDim(name="right", unit="N"))
    normalization = Normalization(mode="MEAN_STD", stats={"mean": (0.5,), "std": (0.6,)})
    action = ActionSpec(dims=dims, rate_hz=20, normalization=normalization)
    return PolicyConfig(observations=(state,), action=action, chunk_length=CHUNK, budget_ms=40, head=head)


def actions_from(state: np.ndarray, count: int) -> np.ndarray:
    """The next actions (count, 2) from a state (2) as it is observed, in physical units."""
    hidden, actions = (state - (1.0, -2.0)) / (0.5, 1.5), []
    for _ in range(count):
        actions.append(0.5 + 0.6 * GAIN @ hidden)
        hidden = CLOSED_LOOP @ hidden
    return np.array(actions, dtype=np.float32)


def episode(length: int, seed: int) -> Episode:
    hidden, states = np.random.default_rng(seed).uniform(-2, 2, 2), []
    for _ in range(length):
        states.append((1.0, -2.0) + hidden * (0.5, 1.5))
        hidden = CLOSED_LOOP @ hidden
    observed = np.array(states, dtype=np.float32)
    return Episode({"state": observed}, actions_from(observed[0].astype(np.float64), length))


class Episodes(list[Episode]):
    """Episodes in memory as an EpisodeSource."""

    def __init__(self, found: Sequence[Episode], described: PolicyConfig) -> None:
        super().__init__(found)
        self.schema, self.lengths = described, np.array([len(item) for item in found])


def episodes(count: int, head: str = "regression", seed: int = 0) -> Episodes:
    lengths = np.random.default_rng(seed).integers(4, 20, count)
    return Episodes([episode(int(length), seed * 1000 + index) for index, length in enumerate(lengths)], schema(head))


SMALL: dict[str, Any] = {
    "hidden": 32,
    "layers": [
        {"type": "mamba2", "heads": 2, "head_dim": 16, "groups": 1, "state": 8},
        {"type": "mlp", "intermediate": 64},
    ],
    "decoder": {"layers": 1, "heads": 2, "head_dim": 16, "intermediate": 64, "flow_steps": 8},
}
SCHEDULE = Schedule(steps=300, batch_size=16, learning_rate=5e-3, warmup_steps=20, weight_decay=0.0)
HEADS = ("regression", "flow_matching")


def small_policy(head: str, seed: int = 0, **changes: Any) -> HybridPolicy:
    model = HybridPolicy(policy.parse_config(raw_config(schema(head), **SMALL | changes)))
    model.reset_parameters(seed)
    return model
