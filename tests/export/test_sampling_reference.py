"""Sampling on the robot against transformers' logits processors, whose order and definitions it follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from edge_sdk import Options
from edge_sdk.sampling import Sampler, distribution

VOCAB = 3000

CASES = [
    Options(temperature=0.7),
    Options(temperature=1.3, top_k=40),
    Options(temperature=1.0, top_p=0.9),
    Options(temperature=1.0, top_p=0.999),
    Options(temperature=0.8, min_p=0.05),
    Options(temperature=0.9, top_k=100, top_p=0.8, min_p=0.02),
    Options(temperature=1.0, repetition_penalty=1.3, top_p=0.5),
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_distribution_is_transformers(options: Options, scale: float) -> None:
    random = np.random.default_rng(3)
    logits = (random.standard_normal(VOCAB) * scale).astype(np.float32)
    context = random.integers(0, VOCAB, 200).tolist()
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(options.repetition_penalty)])
    theirs.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        theirs.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        theirs.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        theirs.append(MinPLogitsWarper(options.min_p))
    expected = theirs(torch.tensor([context]), torch.from_numpy(logits)[None])[0].softmax(-1).numpy()
    ids, probabilities = distribution(Sampler(options, context, VOCAB)._adjusted(logits), options)
    found = np.zeros(VOCAB)
    found[ids] = probabilities
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
