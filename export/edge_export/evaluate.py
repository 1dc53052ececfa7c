"""Exact match: the share of prompts that a model answers with precisely the expected tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edge_export.data import Sample
from edge_export.torch_model import HybridLM
from edge_sdk.backends import States
from edge_sdk.language import greedy_batch

BATCH = 512


class TorchEngine:
    """The torch model behind the runtime's Engine protocol, to be driven by the runtime's own decoding."""

    name = "torch"

    def __init__(self, model: HybridLM) -> None:
        self.model = model.eval()

    def empty_states(self, batch: int) -> States:
        """Zeros, before the first token."""
        return self.model.empty_states(batch)

    @torch.inference_mode()
    def step(self, input_ids: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        """Feeds tokens (batch, length); returns logits (batch, length, vocab) and the new states."""
        logits, present = self.model(torch.from_numpy(input_ids), tuple(states))
        return logits.numpy(), present


def exact_match(model: HybridLM, samples: Sequence[Sample]) -> float:
    """Share of samples whose completion the model generates greedily, token for token."""
    engine, ends = TorchEngine(model), model.config.eos_token_ids
    by_length: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: len(sample.ids)):
        by_length.setdefault(sample.prompt_length, []).append(sample)
    right = 0
    for length, group in by_length.items():
        for start in range(0, len(group), BATCH):
            part = group[start : start + BATCH]
            prompts = np.array([sample.ids[:length] for sample in part])
            budget = max(len(sample.ids) for sample in part) - length
            rows = greedy_batch(engine, prompts, budget, ends)
            right += sum(row == list(sample.ids[length:-1]) for row, sample in zip(rows, part))
    return right / len(samples)
