"""What pruning and distilling will take, for dry runs: from the models' sizes and this machine's speed alone."""

from __future__ import annotations

import time

import torch

from edge_export.distil import DistilSchedule
from edge_export.drafting_head import HeadSchedule
from edge_export.dry_run import Estimate
from edge_export.episode_batches import EpisodeSettings
from edge_export.students import SearchSettings
from edge_sdk.model import ModelConfig
from edge_sdk.telemetry import read_memory

PROBE_WIDTH, PROBE_PRODUCTS = 1024, 8


TIME_FROM = "this processor's speed at matrix products, as if there were nothing else: it takes at least that"


def estimate_search(config: ModelConfig, settings: SearchSettings, length: int) -> Estimate:
    """Of measuring importance, leaving out each layer in turn, and of judging the candidates at half the size."""
    tokens = settings.calibration_samples * length
    passes = len(config.layers) + 1 + settings.candidates / 2
    weights = 4 * config.parameters()
    logits = 3 * 4 * settings.calibration_batch * length * config.vocab_size
    operations = 2 * multiplied_parameters(config) * tokens * passes
    return _estimate(weights, weights, 2 * weights + logits, operations)


def estimate_distillation(
    student: ModelConfig,
    teacher: ModelConfig,
    schedule: DistilSchedule,
    length: int,
    episodes: EpisodeSettings,
) -> Estimate:
    """Of all steps with the longest samples: weights, gradients and two moments, and the teacher for its answers.

    ``episodes``: how much of its rows a policy decodes.
    """
    positions = schedule.batch_size * length
    copies = 4 + bool(schedule.average_decay)
    logits = 4 * 4 * positions * student.vocab_size
    kept = 4 * positions * student.hidden * len(student.layers) * (1 if schedule.recompute else 12)
    memory = 4 * copies * student.parameters() + 4 * teacher.parameters() + logits + kept
    operations = positions * schedule.steps * (6 * multiplied_parameters(student) + 2 * multiplied_parameters(teacher))
    decoded = schedule.batch_size * episodes.chunks
    memory += 4 * decoded * decoder_width(student) * 12
    operations += decoded * schedule.steps * (6 * decoder_products(student) + 2 * decoder_products(teacher))
    answers = 0 if student.policy is not None else positions * schedule.steps * (4 * schedule.top_k + 4)
    return _estimate(4 * teacher.parameters(), answers + 16 * student.parameters(), memory, operations)


def estimate_head(config: ModelConfig, schedule: HeadSchedule, length: int) -> Estimate:
    """Of all steps with the longest samples: the model as it is; of the head also gradients, moments, drafts."""
    assert config.mtp is not None
    positions, head = schedule.batch_size * length, config.mtp.parameters(config.hidden)
    copies = 4 + bool(schedule.average_decay)
    of_a_draft = 4 * config.vocab_size + 12 * config.hidden * (1 + len(config.mtp.layers))
    memory = 4 * config.parameters() + 4 * (copies - 1) * head + 4 * positions * schedule.drafts * of_a_draft
    body, projection = multiplied_parameters(config) - head, config.vocab_size * config.hidden
    per_draft = 6 * (head + projection) + 2 * projection
    operations = positions * schedule.steps * (2 * (body - projection) + schedule.drafts * per_draft)
    written = 4 * config.parameters() + 4 * copies * head
    return _estimate(4 * config.parameters(), written, memory, operations)


def _estimate(read_bytes: float, write_bytes: float, memory_bytes: float, operations: float) -> Estimate:
    held, seconds = read_memory().resident_bytes, operations / operations_per_second()
    return Estimate(read_bytes, write_bytes, held + memory_bytes, seconds, time_from=TIME_FROM)


def decoder_width(config: ModelConfig) -> int:
    """Numbers between the blocks of a policy's decoder, for a chunk."""
    spec = config.policy
    return 0 if spec is None else spec.schema.chunk_length * config.hidden * spec.decoder.layers


def decoder_products(config: ModelConfig) -> int:
    """Products and sums of a policy's decoder for a chunk, over 2, at one time of a flow."""
    spec = config.policy
    return 0 if spec is None else spec.schema.chunk_length * spec.decoder.parameters(spec.schema, config.hidden)


def multiplied_parameters(config: ModelConfig) -> int:
    """Weights that a position is multiplied with: neither embeddings nor a decoder, of the experts the chosen ones."""
    embedding = 0 if config.tie_embeddings and config.policy is None else config.vocab_size * config.hidden
    policy = config.policy
    decoder = 0 if policy is None else policy.decoder.parameters(policy.schema, config.hidden)
    return config.active_parameters() - embedding - decoder


def operations_per_second() -> float:
    """Of float32 matrix products on this machine's processor; multiplications and additions count one each."""
    matrix = torch.ones(PROBE_WIDTH, PROBE_WIDTH)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(PROBE_PRODUCTS):
        matrix @ matrix
    return PROBE_PRODUCTS * 2 * PROBE_WIDTH**3 / (time.perf_counter() - started)
