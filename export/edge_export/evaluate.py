"""Exact match: the share of prompts that a model answers with precisely the expected tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from edge_export.data import Sample
from edge_export.torch_model import HybridLM
from edge_export.torch_ops import CHUNK
from edge_sdk.backends import FIRST_CAPACITY, Engine, States, Wanted, capacity_for
from edge_sdk.language import greedy_batch

BATCH = 512


class TorchStates(States):
    """The states as tensors, replaced in every step."""

    def __init__(self, model: HybridLM, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        self.specs = model.config.past_specs()
        self.tensors = model.empty_states(batch, capacity)

    def grow(self, capacity: int) -> None:
        """Moves the caches into larger tensors."""
        added = capacity - self.capacity
        self.tensors = tuple(
            torch.cat([old, old.new_zeros(*old.shape[:2], added, *old.shape[3:])], dim=2)
            if "capacity" in spec.shape
            else old
            for spec, old in zip(self.specs, self.tensors)
        )
        self.capacity = capacity

    def copy(self) -> TorchStates:
        """Another one with the same content; the tensors are shared, since a step makes new ones."""
        other = copy.copy(self)
        other.past_length = self.past_length.copy()
        return other


class TorchEngine(Engine):
    """The torch model behind the runtime's Engine protocol, to be driven by the runtime's own decoding."""

    name = "torch"
    prefill_block = CHUNK

    def __init__(self, model: HybridLM) -> None:
        self.model = model.eval()
        self.max_length = model.config.max_length

    def empty_states(self, batch: int) -> TorchStates:
        """Zeros, before the first token."""
        return TorchStates(self.model, batch, min(FIRST_CAPACITY, self.model.config.max_length))

    @torch.inference_mode()
    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64; see :meth:`edge_sdk.backends.Engine.step`."""
        assert isinstance(states, TorchStates)
        length = input_ids.shape[1]
        needed = int(states.past_length.max()) + length
        if needed > states.capacity:
            states.grow(capacity_for(needed, states.capacity, self.model.config.max_length))
        kept = {"last": 1, "all": length, "none": 0}[logits]
        found, states.tensors = self.model.step(
            torch.from_numpy(input_ids),
            torch.from_numpy(states.past_length),
            torch.arange(length - kept, length),
            states.tensors,
        )
        states.past_length += length
        return found.numpy()


def greedy_answers(model: HybridLM, prompts: Sequence[Sequence[int]], budgets: Sequence[int]) -> list[list[int]]:
    """Greedy continuations of prompts, each cut before its first end token and of at most its budget of tokens.

    Prompts of equal length run side by side, those with small budgets first.
    """
    engine, ends = TorchEngine(model), model.config.eos_token_ids
    by_length: dict[int, list[int]] = {}
    for index in sorted(range(len(prompts)), key=budgets.__getitem__):
        by_length.setdefault(len(prompts[index]), []).append(index)
    answers: list[list[int]] = [[] for _ in prompts]
    for group in by_length.values():
        for start in range(0, len(group), BATCH):
            part = group[start : start + BATCH]
            ids = np.array([prompts[index] for index in part])
            rows = greedy_batch(engine, ids, max(budgets[index] for index in part), ends)
            for index, row in zip(part, rows):
                answers[index] = row[: budgets[index]]
    return answers


def exact_match(model: HybridLM, samples: Sequence[Sample]) -> float:
    """Share of samples whose completion the model generates greedily, token for token."""
    prompts = [sample.ids[: sample.prompt_length] for sample in samples]
    budgets = [len(sample.ids) - sample.prompt_length for sample in samples]
    answers = greedy_answers(model, prompts, budgets)
    right = sum(row == list(sample.ids[sample.prompt_length : -1]) for row, sample in zip(answers, samples))
    return right / len(samples)
