"""How far a policy's actions are from those of held-out episodes."""

from __future__ import annotations

import numpy as np
import torch

from edge_export.episodes import Episode, EpisodeSource
from edge_export.torch_policy import HybridPolicy
from edge_sdk.instruction import InstructionCodec
from edge_sdk.policy_spec import NO_TOKEN

ROWS = 256
"""Chunks that are decoded at once."""


def action_errors(model: HybridPolicy, source: EpisodeSource, codec: InstructionCodec | None) -> dict[str, float]:
    """Mean absolute errors over all chunks from the beginning of each episode, nothing being committed.

    ``action_error`` is that of normalised actions; the others, by dimension, are in physical units.
    """
    schema = model.spec.schema
    scale = np.broadcast_to(schema.action.normalization.scaling().scale, schema.action_dim)
    errors: list[np.ndarray] = []
    for index in range(len(source)):
        episode = source[index]
        steps = np.arange(0, len(episode), model.spec.stride)
        found = chunks_of(model, episode, steps, codec, seed=index)
        for step, chunk in zip(steps, found):
            expected = episode.actions[step : step + schema.chunk_length]
            errors.append(np.abs(chunk[: len(expected)] - expected))
    physical = np.concatenate(errors).mean(0)
    by_name = {f"error of {dim.name}": float(error) for dim, error in zip(schema.action.dims, physical)}
    return {"action_error": float((physical / scale).mean()), **by_name}


@torch.inference_mode()
def chunks_of(
    model: HybridPolicy, episode: Episode, steps: np.ndarray, codec: InstructionCodec | None, seed: int
) -> np.ndarray:
    """The chunks (steps, chunk, action_dim) of some of an episode's steps, in physical units."""
    schema, ids = model.spec.schema, [] if codec is None else codec.encode(episode.instruction)
    episode.check(schema)
    observations = []
    for item in schema.observations:
        before = np.zeros((len(ids), *item.shape), item.dtype)
        values = np.concatenate([before, episode.observations[item.name][steps]])
        observations.append(torch.from_numpy(values)[None])
    tokens = None if codec is None else torch.tensor([[*ids, *[NO_TOKEN] * len(steps)]])
    conditions = model.eval()(observations, tokens)[:, len(ids) :]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in conditions.split(ROWS, dim=1):
        shape = (*part.shape[:2], schema.chunk_length, schema.action_dim)
        noise = torch.randn(shape, generator=generator)
        nothing = torch.zeros(part.shape[:2], dtype=torch.int64)
        found.append(model.act(part, torch.zeros(shape), nothing, noise)[0])
    return torch.cat(found).numpy()
